"""The watched loop over formula UNets: it equals the runtime's, and shows the steps that ran."""

from __future__ import annotations

import numpy as np
import pytest

from sdrt.plots.watch import Step, one_step, watch
from sdrt.runtime.denoise import Latents, denoise
from sdrt.sampling.lms import Schedule
from tests.doubles.engines import FormulaUnet, mix
from tests.helpers.latents import conditioning, noise, sd_v1_schedule
from tests.models.tiny_bundle import LATENTS

STEPS = 6
# float32 at values up to 15: x - sigma * noise cancels two of them.
ROUNDING = 1e-4


def schedule(prediction_type: str = "epsilon") -> Schedule:
    return sd_v1_schedule(STEPS, prediction_type)


def unit(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal((1, *LATENTS), np.float32)


def always(output: Latents) -> FormulaUnet:
    """Return a UNet that gives one output, whatever it is fed."""
    return FormulaUnet(lambda sample, *_: np.broadcast_to(output, sample.shape))


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_is_the_runtimes_loop_and_shows_every_step(guidance_scale: float, prediction_type: str) -> None:
    steps: list[Step] = []
    plan, words = schedule(prediction_type), conditioning(scale=guidance_scale, guided=guidance_scale > 1)
    start = noise(plan)

    def see(step: Step) -> bool:
        steps.append(step)
        return True

    kept: list[Latents] = []

    def keep(_step: int, _timestep: float, latents: Latents) -> Latents:
        kept.append(latents)
        return latents

    final = watch(FormulaUnet(mix), plan, start, words, see)
    expected = denoise(FormulaUnet(mix), plan, start, words, keep)
    assert np.array_equal(final, expected)
    assert [step.index for step in steps] == list(range(STEPS))
    assert [step.sigma for step in steps] == plan.sigmas[:-1].tolist()
    assert [step.timestep for step in steps] == plan.timesteps.tolist()
    for step, before in zip(steps, [start, *kept], strict=False):
        assert np.array_equal(step.latents, before)
    # The first step of LMS is Euler's: it follows the shown noise.
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
        found = one_step(always(output), plan, step, picture + sigma * noise, conditioning())
        assert np.abs(found.noise - noise).max() < ROUNDING
        assert np.abs(found.denoised - picture).max() < ROUNDING
        assert np.abs(found.latents - picture).max() > ROUNDING


def test_one_step_is_one_call_at_that_step() -> None:
    unet, plan = FormulaUnet(mix), schedule()
    latents = unit(4)
    found = one_step(unet, plan, 3, latents, conditioning())
    assert len(unet.fed) == 1
    assert unet.fed[0]["timestep"].tolist() == [plan.timesteps[3]] * 2
    assert found.sigma == plan.sigmas[3]
    assert np.array_equal(found.latents, latents)


def test_watching_ends_when_it_is_told_to() -> None:
    unet, plan = FormulaUnet(mix), schedule()
    start = unit(5)
    stopped = watch(unet, plan, start, conditioning(), lambda step: step.index < 2)
    assert len(unet.fed) == 3
    following: list[Latents] = []

    def see(step: Step) -> bool:
        following.append(step.latents)
        return True

    watch(FormulaUnet(mix), plan, start, conditioning(), see)
    assert np.array_equal(stopped, following[3])
