"""The watched loop over UNets that are formulas: it is the runtime's own, and what it shows is what was run."""

from __future__ import annotations

import numpy as np
import pytest

from sdrt.plots.watch import Step, one_step, watch
from sdrt.runtime.denoise import Conditioning, Latents, denoise
from sdrt.sampling.lms import Schedule
from tests.plots.formula_unet import SHAPE, FormulaUnet

STEPS = 6
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# float32 at values up to 15: x - sigma * noise cancels two of them.
ROUNDING = 1e-4


def schedule(prediction_type: str = "epsilon") -> Schedule:
    return Schedule.from_config({**CONFIG, "prediction_type": prediction_type}, STEPS)


def unit(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal((1, *SHAPE), np.float32)


def conditioning(guidance_scale: float = 7.5) -> Conditioning:
    states = np.random.default_rng(1).standard_normal((2, 7, 5), np.float32)
    return Conditioning(states[:1], states[1:] if guidance_scale > 1 else None, guidance_scale)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_is_the_runtimes_loop_and_shows_every_step(guidance_scale: float, prediction_type: str) -> None:
    steps: list[Step] = []
    plan, words = schedule(prediction_type), conditioning(guidance_scale)
    start = unit(0) * np.float32(plan.init_noise_sigma)

    def see(step: Step) -> bool:
        steps.append(step)
        return True

    kept: list[Latents] = []

    def keep(_step: int, _timestep: float, latents: Latents) -> Latents:
        kept.append(latents)
        return latents

    final = watch(FormulaUnet.mixing(), plan, start, words, see)
    expected = denoise(FormulaUnet.mixing(), plan, start, words, keep)
    assert np.array_equal(final, expected)
    assert [step.index for step in steps] == list(range(STEPS))
    assert [step.sigma for step in steps] == plan.sigmas[:-1].tolist()
    assert [step.timestep for step in steps] == plan.timesteps.tolist()
    for step, before in zip(steps, [start, *kept], strict=False):
        assert np.array_equal(step.latents, before)
    # The first step of LMS is Euler's: it goes along the noise that was shown.
    moved = steps[0].latents + np.float32(plan.sigmas[1] - plan.sigmas[0]) * steps[0].noise
    assert np.abs(moved - kept[0]).max() < ROUNDING


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_unet_that_knows_the_noise_shows_the_picture(prediction_type: str) -> None:
    picture, noise, plan = unit(2), unit(3), schedule(prediction_type)
    for step in (0, 3, STEPS - 1):
        sigma = np.float32(plan.sigmas[step])
        scale = np.sqrt(sigma**2 + 1)
        # v is alpha * noise - sigma_t * picture, where alpha = 1 / scale and sigma_t = sigma / scale.
        output = noise if prediction_type == "epsilon" else (noise - sigma * picture) / scale
        found = one_step(FormulaUnet.always(output), plan, step, picture + sigma * noise, conditioning())
        assert np.abs(found.noise - noise).max() < ROUNDING
        assert np.abs(found.denoised - picture).max() < ROUNDING
        assert np.abs(found.latents - picture).max() > ROUNDING


def test_one_step_is_one_call_at_that_step() -> None:
    unet, plan = FormulaUnet.mixing(), schedule()
    latents = unit(4)
    found = one_step(unet, plan, 3, latents, conditioning())
    assert len(unet.fed) == 1
    assert unet.fed[0]["timestep"].tolist() == [plan.timesteps[3]] * 2
    assert found.sigma == plan.sigmas[3]
    assert np.array_equal(found.latents, latents)


def test_watching_ends_when_it_is_told_to() -> None:
    unet, plan = FormulaUnet.mixing(), schedule()
    start = unit(5)
    stopped = watch(unet, plan, start, conditioning(), lambda step: step.index < 2)
    assert len(unet.fed) == 3
    following: list[Latents] = []

    def see(step: Step) -> bool:
        following.append(step.latents)
        return True

    watch(FormulaUnet.mixing(), plan, start, conditioning(), see)
    assert np.array_equal(stopped, following[3])
