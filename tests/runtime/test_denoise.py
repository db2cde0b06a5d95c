"""The denoising loop over a formula UNet: guidance, history, stopping, NaN and Inf."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrt.errors import NumericError, UsageError
from sdrt.runtime.denoise import Conditioning, Latents, denoise, denoise_fused
from sdrt.sampling.lms import Schedule
from tests.doubles.engines import Formula, FormulaUnet, mix
from tests.helpers.latents import conditioning, difference, noise, sd_v1_schedule
from tests.models.tiny_bundle import LATENTS

Array = npt.NDArray[Any]
STEPS = 6
# float32 sums of a few terms of size 10; the loop and the formulas below round in another order.
TOLERANCE = 1e-5


def schedule(prediction_type: str = "epsilon", steps: int = STEPS, order: int = 4) -> Schedule:
    return sd_v1_schedule(steps, prediction_type, order)


def reference(plan: Schedule, latents: Latents, asked: Conditioning, formula: Formula) -> Latents:
    """Compute the loop in float64, as the papers write it."""
    x: Array = latents.astype(np.float64)
    slopes: list[Array] = []
    for i in range(plan.num_inference_steps):
        sigma, timestep = plan.sigmas[i], np.full(len(x), plan.timesteps[i])
        sample = x / np.sqrt(sigma**2 + 1)
        output = formula(sample, timestep, asked.prompt_embeds)
        low, high = asked.guidance_interval or (0, np.inf)
        if asked.negative_prompt_embeds is not None and low < sigma <= high:
            unconditional = formula(sample, timestep, asked.negative_prompt_embeds)
            output = unconditional + asked.guidance_scale * (output - unconditional)
        if plan.prediction_type == "epsilon":
            denoised = x - sigma * output
        else:
            denoised = x / (sigma**2 + 1) - output * sigma / np.sqrt(sigma**2 + 1)
        slopes.insert(0, (x - denoised) / sigma)
        x = x + sum(c * slope for c, slope in zip(plan.coefficients[i], slopes, strict=False))
    return x.astype(np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_the_loop_is_the_formula(prediction_type: str, guided: bool, count: int) -> None:
    plan, asked = schedule(prediction_type), conditioning(count, guided=guided)
    final = denoise(FormulaUnet(mix), plan, noise(plan, count), asked)
    expected = reference(plan, noise(plan, count), asked, mix)
    assert final.dtype == np.float32
    assert difference(final, expected) < TOLERANCE


def test_the_comparison_finds_planted_faults() -> None:
    """Plant swapped halves, another scale, a lower order and the other prediction type, each far over the tolerance."""
    asked, plan = conditioning(), schedule()
    assert asked.negative_prompt_embeds is not None
    expected = reference(plan, noise(schedule()), asked, mix)
    swapped = Conditioning(asked.negative_prompt_embeds, asked.prompt_embeds, asked.guidance_scale)
    faults = {
        "swapped": (plan, swapped),
        "scale": (plan, conditioning(scale=7.4)),
        "order": (schedule(order=3), asked),
        "prediction": (schedule("v_prediction"), asked),
    }
    for name, (planned, given) in faults.items():
        assert difference(denoise(FormulaUnet(mix), planned, noise(schedule()), given), expected) > 10 * TOLERANCE, name


def test_guidance_runs_both_halves_as_one_batch() -> None:
    unet = FormulaUnet(mix)
    asked = conditioning(2)
    assert asked.negative_prompt_embeds is not None
    denoise(unet, schedule(), noise(schedule(), 2), asked)
    assert len(unet.fed) == STEPS
    for fed, timestep in zip(unet.fed, schedule().timesteps, strict=True):
        assert [len(array) for array in fed.values()] == [4, 4, 4]
        assert (fed["sample"][:2] == fed["sample"][2:]).all()
        assert (fed["encoder_hidden_states"][:2] == asked.negative_prompt_embeds).all()
        assert (fed["encoder_hidden_states"][2:] == asked.prompt_embeds).all()
        assert fed["timestep"].dtype == np.float32
        assert (fed["timestep"] == np.float32(timestep)).all()


def test_without_guidance_a_single_batch_runs() -> None:
    unet = FormulaUnet(mix)
    denoise(unet, schedule(), noise(schedule(), 2), conditioning(2, guided=False))
    assert {len(fed["sample"]) for fed in unet.fed} == {2}


def test_an_fp16_unet_is_fed_fp16_and_fractional_timesteps() -> None:
    unet = FormulaUnet(mix, "float16")
    final = denoise(unet, schedule(steps=48), noise(schedule()), conditioning())
    assert {str(fed["sample"].dtype) for fed in unet.fed} == {"float16"}
    assert {str(fed["timestep"].dtype) for fed in unet.fed} == {"float32"}
    assert any(fed["timestep"][0] % 1 for fed in unet.fed)
    assert final.dtype == np.float32


def test_the_noise_given_is_not_changed() -> None:
    given = noise(schedule())
    denoise(FormulaUnet(mix), schedule(), given, conditioning())
    assert (given == noise(schedule())).all()


def breaking(step: int, value: float) -> Formula:
    """Return a formula with one bad value at a step, counted from 1."""
    timestep_at = schedule().timesteps[step - 1]

    def formula(sample: Array, timestep: Array, hidden: Array) -> Array:
        output = mix(sample, timestep, hidden)
        if timestep[0] == np.float32(timestep_at):
            output[0, 1, 2, 3] = value
        return output

    return formula


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [1, 4, STEPS])
def test_numbers_that_are_none_stop_the_loop(value: float, step: int) -> None:
    unet = FormulaUnet(breaking(step, value))
    with pytest.raises(NumericError) as caught:
        denoise(unet, schedule(), noise(schedule()), conditioning())
    assert len(unet.fed) == step
    assert caught.value.message.startswith("unet gave")
    assert f"at step {step} (sigma {schedule().sigmas[step - 1]:.4g})" in caught.value.message
    assert "(0, 1, 2, 3)" in caught.value.message


def test_latents_that_overflow_are_found() -> None:
    unet = FormulaUnet(lambda sample, *_: np.full_like(sample, 3e38))
    with pytest.raises(NumericError, match="latents gave"), np.errstate(over="ignore"):
        denoise(unet, schedule(), noise(schedule()), conditioning(guided=False))


def test_a_callback_sees_every_step_and_may_stop() -> None:
    seen: list[tuple[int, float]] = []

    def stop_at_third(step: int, timestep: float, latents: Latents) -> Latents | None:
        assert latents.shape == (1, *LATENTS)
        seen.append((step, timestep))
        return None if step == 2 else latents

    unet = FormulaUnet(mix)
    stopped = denoise(unet, schedule(), noise(schedule()), conditioning(), stop_at_third)
    assert seen == list(enumerate(schedule().timesteps[:3]))
    assert len(unet.fed) == 3
    assert np.isfinite(stopped).all()


def test_a_callback_may_change_the_latents() -> None:
    def clear(_step: int, _timestep: float, latents: Latents) -> Latents:
        return np.zeros_like(latents)

    unet = FormulaUnet(mix)
    denoise(unet, schedule(), noise(schedule()), conditioning(), clear)
    assert (unet.fed[0]["sample"] != 0).any()
    assert all((fed["sample"] == 0).all() for fed in unet.fed[1:])


def test_outside_the_guidance_interval_the_prompts_half_runs_alone() -> None:
    plan, latents, everywhere = schedule(), noise(schedule(), 2), conditioning(2)
    sigmas = plan.sigmas
    # Steps 1 to 3: the lower bound is outside, the upper one inside.
    asked = replace(everywhere, guidance_interval=(float(sigmas[4]), float(sigmas[1])))
    unet = FormulaUnet(mix)
    actual = denoise(unet, plan, latents, asked)
    assert [len(feeds["sample"]) for feeds in unet.fed] == [2, 4, 4, 4, 2, 2]
    for feeds in (unet.fed[0], unet.fed[4]):
        np.testing.assert_array_equal(feeds["encoder_hidden_states"], asked.prompt_embeds)
    assert difference(actual, reference(plan, latents, asked, mix)) < TOLERANCE
    # Guidance in every step, or in none, gives other latents.
    for other in (everywhere, replace(asked, negative_prompt_embeds=None)):
        assert difference(actual, denoise(FormulaUnet(mix), plan, latents, other)) > 0.01


def test_an_interval_around_all_steps_changes_nothing() -> None:
    plan, latents, asked = schedule(), noise(schedule()), conditioning()
    wide = replace(asked, guidance_interval=(0.0, 100.0))
    expected = denoise(FormulaUnet(mix), plan, latents, asked)
    np.testing.assert_array_equal(denoise(FormulaUnet(mix), plan, latents, wide), expected)


def test_the_fused_step_takes_no_interval() -> None:
    asked = replace(conditioning(), guidance_interval=(0.0, 100.0))
    with pytest.raises(UsageError, match="guidance only"):
        denoise_fused(FormulaUnet(mix), schedule(), noise(schedule()), asked)
