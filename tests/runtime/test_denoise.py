"""The denoising loop over a UNet that is a formula: guidance, history, stopping, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import TensorSpec
from sdrt.errors import NumericError, UsageError
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.denoise import Conditioning, Latents, denoise, denoise_fused
from sdrt.sampling.lms import Schedule

Array = npt.NDArray[Any]
Formula = Callable[[Array, Array, Array], Array]
STEPS = 6
SHAPE = (4, 8, 8)
# float32 sums of a few terms of size 10; the loop and the formulas below round in another order.
TOLERANCE = 1e-5


class FormulaUNet(Engine):
    """An engine whose output is a formula of sample, timestep and encoder_hidden_states; keeps what it was fed."""

    def __init__(self, formula: Formula, dtype: str = "float32") -> None:
        shapes = {"sample": ("batch", *SHAPE), "timestep": ("batch",), "encoder_hidden_states": ("batch", 7, 5)}
        inputs = tuple(
            TensorSpec.model_validate(
                {"name": name, "dtype": "float32" if name == "timestep" else dtype, "shape": shape}
            )
            for name, shape in shapes.items()
        )
        output = TensorSpec.model_validate({"name": "out_sample", "dtype": dtype, "shape": ("batch", *SHAPE)})
        spec = EngineComponent(
            file="unet/model",
            weights=None,
            precision="fp32",
            inputs=inputs,
            outputs=(output,),
            batch=None,
            seconds=0,
            size_bytes=0,
            options={},
        )
        super().__init__("unet", spec)
        self.formula = formula
        self.fed: list[dict[str, Array]] = []

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.fed.append(feeds)
        output = self.formula(feeds["sample"], feeds["timestep"], feeds["encoder_hidden_states"])
        return {"out_sample": output.astype(feeds["sample"].dtype)}

    def release(self) -> None:
        pass


def shift(sample: Array, timestep: Array, hidden: Array) -> Array:
    """Depends on everything: the sample, the timestep and each row's prompt."""
    rows = (-1, 1, 1, 1)
    return np.asarray(0.5 * sample + (timestep / 1000).reshape(rows) + hidden.mean(axis=(1, 2)).reshape(rows))


def schedule(prediction_type: str = "epsilon", steps: int = STEPS, order: int = 4) -> Schedule:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return Schedule.from_config({**config, "prediction_type": prediction_type}, steps, order)


def noise(count: int = 1, seed: int = 0) -> Latents:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32) * np.float32(14.6)


def conditioning(count: int = 1, scale: float = 7.5, *, guided: bool = True) -> Conditioning:
    states = np.random.default_rng(1).standard_normal((2 * count, 7, 5), np.float32)
    return Conditioning(states[:count], states[count:] if guided else None, scale)


def reference(plan: Schedule, latents: Latents, asked: Conditioning, formula: Formula) -> Latents:
    """The loop in float64, as the papers write it."""
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


def difference(actual: Latents, expected: Latents) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_the_loop_is_the_formula(prediction_type: str, guided: bool, count: int) -> None:
    plan, asked = schedule(prediction_type), conditioning(count, guided=guided)
    final = denoise(FormulaUNet(shift), plan, noise(count), asked)
    expected = reference(plan, noise(count), asked, shift)
    assert final.dtype == np.float32
    assert difference(final, expected) < TOLERANCE


def test_the_comparison_finds_planted_faults() -> None:
    """Halves swapped, another scale, a lower order, the other prediction type: each is far over the tolerance."""
    asked, plan = conditioning(), schedule()
    assert asked.negative_prompt_embeds is not None
    expected = reference(plan, noise(), asked, shift)
    swapped = Conditioning(asked.negative_prompt_embeds, asked.prompt_embeds, asked.guidance_scale)
    faults = {
        "swapped": (plan, swapped),
        "scale": (plan, conditioning(scale=7.4)),
        "order": (schedule(order=3), asked),
        "prediction": (schedule("v_prediction"), asked),
    }
    for name, (planned, given) in faults.items():
        assert difference(denoise(FormulaUNet(shift), planned, noise(), given), expected) > 10 * TOLERANCE, name


def test_guidance_runs_both_halves_as_one_batch() -> None:
    unet = FormulaUNet(shift)
    asked = conditioning(2)
    assert asked.negative_prompt_embeds is not None
    denoise(unet, schedule(), noise(2), asked)
    assert len(unet.fed) == STEPS
    for fed, timestep in zip(unet.fed, schedule().timesteps, strict=True):
        assert [len(array) for array in fed.values()] == [4, 4, 4]
        assert (fed["sample"][:2] == fed["sample"][2:]).all()
        assert (fed["encoder_hidden_states"][:2] == asked.negative_prompt_embeds).all()
        assert (fed["encoder_hidden_states"][2:] == asked.prompt_embeds).all()
        assert fed["timestep"].dtype == np.float32
        assert (fed["timestep"] == np.float32(timestep)).all()


def test_without_guidance_a_single_batch_runs() -> None:
    unet = FormulaUNet(shift)
    denoise(unet, schedule(), noise(2), conditioning(2, guided=False))
    assert {len(fed["sample"]) for fed in unet.fed} == {2}


def test_an_fp16_unet_is_fed_fp16_and_fractional_timesteps() -> None:
    unet = FormulaUNet(shift, "float16")
    final = denoise(unet, schedule(steps=48), noise(), conditioning())
    assert {str(fed["sample"].dtype) for fed in unet.fed} == {"float16"}
    assert {str(fed["timestep"].dtype) for fed in unet.fed} == {"float32"}
    assert any(fed["timestep"][0] % 1 for fed in unet.fed)
    assert final.dtype == np.float32


def test_the_noise_given_is_not_changed() -> None:
    given = noise()
    denoise(FormulaUNet(shift), schedule(), given, conditioning())
    assert (given == noise()).all()


def breaking(step: int, value: float) -> Formula:
    """Gives one bad value at a step, counted from 1."""
    timestep_at = schedule().timesteps[step - 1]

    def formula(sample: Array, timestep: Array, hidden: Array) -> Array:
        output = shift(sample, timestep, hidden)
        if timestep[0] == np.float32(timestep_at):
            output[0, 1, 2, 3] = value
        return output

    return formula


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [1, 4, STEPS])
def test_numbers_that_are_none_stop_the_loop(value: float, step: int) -> None:
    unet = FormulaUNet(breaking(step, value))
    with pytest.raises(NumericError) as caught:
        denoise(unet, schedule(), noise(), conditioning())
    assert len(unet.fed) == step
    assert caught.value.message.startswith("unet gave")
    assert f"at step {step} (sigma {schedule().sigmas[step - 1]:.4g})" in caught.value.message
    assert "(0, 1, 2, 3)" in caught.value.message


def test_latents_that_overflow_are_found() -> None:
    unet = FormulaUNet(lambda sample, *_: np.full_like(sample, 3e38))
    with pytest.raises(NumericError, match="latents gave"), np.errstate(over="ignore"):
        denoise(unet, schedule(), noise(), conditioning(guided=False))


def test_a_callback_sees_every_step_and_may_stop() -> None:
    seen: list[tuple[int, float]] = []

    def stop_at_third(step: int, timestep: float, latents: Latents) -> Latents | None:
        assert latents.shape == (1, *SHAPE)
        seen.append((step, timestep))
        return None if step == 2 else latents

    unet = FormulaUNet(shift)
    stopped = denoise(unet, schedule(), noise(), conditioning(), stop_at_third)
    assert seen == list(enumerate(schedule().timesteps[:3]))
    assert len(unet.fed) == 3
    assert np.isfinite(stopped).all()


def test_a_callback_may_change_the_latents() -> None:
    unet = FormulaUNet(shift)
    denoise(unet, schedule(), noise(), conditioning(), lambda _step, _timestep, latents: np.zeros_like(latents))
    assert (unet.fed[0]["sample"] != 0).any()
    assert all((fed["sample"] == 0).all() for fed in unet.fed[1:])


def test_outside_the_guidance_interval_the_prompts_half_runs_alone() -> None:
    plan, latents, everywhere = schedule(), noise(2), conditioning(2)
    sigmas = plan.sigmas
    # Steps 1 to 3: the lower bound is outside, the upper one inside.
    asked = replace(everywhere, guidance_interval=(float(sigmas[4]), float(sigmas[1])))
    unet = FormulaUNet(shift)
    actual = denoise(unet, plan, latents, asked)
    assert [len(feeds["sample"]) for feeds in unet.fed] == [2, 4, 4, 4, 2, 2]
    for feeds in (unet.fed[0], unet.fed[4]):
        np.testing.assert_array_equal(feeds["encoder_hidden_states"], asked.prompt_embeds)
    assert difference(actual, reference(plan, latents, asked, shift)) < TOLERANCE
    # Guidance in every step, or in none, is something else.
    for other in (everywhere, replace(asked, negative_prompt_embeds=None)):
        assert difference(actual, denoise(FormulaUNet(shift), plan, latents, other)) > 0.01


def test_an_interval_around_all_steps_changes_nothing() -> None:
    plan, latents, asked = schedule(), noise(), conditioning()
    wide = replace(asked, guidance_interval=(0.0, 100.0))
    expected = denoise(FormulaUNet(shift), plan, latents, asked)
    np.testing.assert_array_equal(denoise(FormulaUNet(shift), plan, latents, wide), expected)


def test_the_fused_step_takes_no_interval() -> None:
    asked = replace(conditioning(), guidance_interval=(0.0, 100.0))
    with pytest.raises(UsageError, match="guidance only"):
        denoise_fused(FormulaUNet(shift), schedule(), noise(), asked)
