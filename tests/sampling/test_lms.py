"""LMS against diffusers' LMSDiscreteScheduler and against exact rational arithmetic."""

from __future__ import annotations

import ast
import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import LMSDiscreteScheduler
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdrt.errors import ArtefactError, UsageError
from sdrt.sampling import lms
from sdrt.sampling.lms import Schedule
from sdrt.sampling.noise_config import WITHOUT_BETAS

# diffusers passes torch tensors to np.array, which numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD_V1 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
# Both sides keep float32 latents and round differently at each step; diffusers also evaluates its integrands in
# float32. Measured with SD v1's betas (first sigma 14.6) over 1 to 100 steps: 1.3e-6 at most. Latents that start at a
# large sigma and end near 1 keep its rounding errors: 6e-8 of the first sigma and step, so 1.03e-5 was seen at a first
# sigma of 132, and 1e-3 at 20,000 (cosine betas), where both sides are as far from a float64 trajectory as from each
# other. So the tolerance grows with the first sigma.
TRAJECTORY_TOLERANCE = 1e-5
ROUNDING_MATTERS_FROM_SIGMA = 50.0
# The two tables differ by how torch and numpy round linspace in float32: a few units in the last place.
SIGMA_TOLERANCE = 1e-6


def reference(config: dict[str, Any], steps: int) -> LMSDiscreteScheduler:
    """Return diffusers' scheduler for a config, with its timesteps set."""
    scheduler = LMSDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def unet(sample: np.ndarray, timestep: float) -> np.ndarray:
    """Compute a stand-in for the UNet: smooth, bounded, and dependent on the timestep."""
    mixed = np.roll(sample, 1, axis=-1) - 0.5 * sample
    return np.tanh(mixed + np.float32(timestep / 1000)).astype(np.float32)


def our_trajectory(schedule: Schedule, noise: np.ndarray) -> list[np.ndarray]:
    """Return latents after each step, by the functions of sdrt.sampling.lms."""
    latents = noise * np.float32(schedule.init_noise_sigma)
    history: list[lms.Latents] = []
    trajectory = []
    for timestep, sigma, row in zip(schedule.timesteps, schedule.sigmas, schedule.coefficients, strict=False):
        output = unet(lms.scale_model_input(latents, sigma), timestep)
        history = [lms.derivative(latents, output, sigma, schedule.prediction_type), *history[:3]]
        latents = lms.step(latents, history, row)
        trajectory.append(latents)
    return trajectory


def diffusers_trajectory(
    scheduler: LMSDiscreteScheduler, noise: np.ndarray, start_step: int | None = None
) -> list[np.ndarray]:
    """Return latents after each step, by diffusers, from noise at the first sigma or at the step's."""
    first = scheduler.init_noise_sigma if start_step is None else scheduler.sigmas[start_step]
    if start_step is not None:
        scheduler.set_begin_index(start_step)
    latents, trajectory = torch.from_numpy(noise) * first, []
    for timestep in scheduler.timesteps[start_step or 0 :]:
        output = unet(scheduler.scale_model_input(latents, timestep).numpy(), float(timestep))
        latents = scheduler.step(torch.from_numpy(output), timestep, latents).prev_sample
        trajectory.append(latents.numpy())
    return trajectory


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Return the largest relative L2 difference of any step."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs, strict=True))


def unit_noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 4, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 10, 25, 50])
def test_trajectory_equals_diffusers(steps: int, prediction_type: str) -> None:
    config = SD_V1 | {"prediction_type": prediction_type}
    schedule = Schedule.from_config(config, steps)
    ours, theirs = our_trajectory(schedule, unit_noise()), diffusers_trajectory(reference(config, steps), unit_noise())
    assert len(ours) == steps
    assert largest_difference(ours, theirs) < TRAJECTORY_TOLERANCE
    assert all(latents.dtype == np.float32 for latents in ours)


@pytest.mark.parametrize("fault", ["order", "sigma", "prediction_type", "warm-up"])
def test_a_planted_fault_is_found(fault: str) -> None:
    schedule = Schedule.from_config(SD_V1, 10)
    coefficients = schedule.coefficients.copy()
    coefficients[1] = [coefficients[1].sum(), 0, 0, 0]
    planted = {
        "order": Schedule.from_config(SD_V1, 10, order=3),
        "sigma": dataclasses.replace(schedule, sigmas=schedule.sigmas * 1.001),
        "prediction_type": dataclasses.replace(schedule, prediction_type="v_prediction"),
        "warm-up": dataclasses.replace(schedule, coefficients=coefficients),
    }[fault]
    theirs = diffusers_trajectory(reference(SD_V1, 10), unit_noise())
    assert largest_difference(our_trajectory(planted, unit_noise()), theirs) > 10 * TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("start_step", [0, 1, 2, 3, 7, 19])
def test_a_start_in_the_middle_equals_diffusers(start_step: int) -> None:
    schedule = Schedule.from_config(SD_V1, 20).starting_at(start_step)
    assert schedule.num_inference_steps == len(schedule.timesteps) == len(schedule.coefficients) == 20 - start_step
    theirs = diffusers_trajectory(reference(SD_V1, 20), unit_noise(), start_step)
    assert largest_difference(our_trajectory(schedule, unit_noise()), theirs) < TRAJECTORY_TOLERANCE


def test_a_fresh_start_in_the_middle_is_another() -> None:
    fresh = Schedule.from_config(SD_V1, 20).starting_at(7, fresh=True)
    theirs = diffusers_trajectory(reference(SD_V1, 20), unit_noise(), 7)
    assert largest_difference(our_trajectory(fresh, unit_noise()), theirs) > 100 * TRAJECTORY_TOLERANCE


@pytest.mark.parametrize("start_step", [0, 1, 7, 19])
def test_a_fresh_start_integrates_a_constant_from_its_first_step(start_step: int) -> None:
    schedule = Schedule.from_config(SD_V1, 20)
    widths = np.diff(schedule.sigmas[start_step:])
    fresh = schedule.starting_at(start_step, fresh=True)
    assert fresh.coefficients[0, 1:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(fresh.coefficients.sum(axis=1), widths, rtol=1e-12)
    # diffusers treats the missing derivatives as zero, and so overshoots at its first step.
    theirs = schedule.starting_at(start_step).coefficients[0, 0] / widths[0]
    assert theirs == 1 if start_step == 0 else theirs > 1.1
    with pytest.raises(ValueError, match="read-only"):
        fresh.coefficients[0] = 0


def table_tolerance(schedule: Schedule) -> npt.NDArray[np.float64]:
    """Bound the relative difference of two float32 tables of any betas at each sigma.

    torch and numpy round linspace differently in the last place, so each of the k factors 1 - beta of alpha_bar may
    round the other way, by 6e-8: sigma^2 = (1 - alpha_bar) / alpha_bar moves by k * 6e-8 / (1 - alpha_bar).
    """
    variances: npt.NDArray[np.float64] = np.maximum(np.square(schedule.sigmas), 1e-12)
    factors: npt.NDArray[np.float64] = np.append(np.ceil(schedule.timesteps) + 1, 0)
    return SIGMA_TOLERANCE + factors * 6e-8 / 2 * (1 + variances) / variances


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    steps=st.integers(1, 100),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    beta_start=st.floats(1e-4, 5e-3),
    beta_end=st.floats(6e-3, 3e-2),
    prediction_type=st.sampled_from(["epsilon", "v_prediction"]),
)
@example(steps=3, beta_schedule="squaredcos_cap_v2", beta_start=1e-4, beta_end=2e-2, prediction_type="v_prediction")
@example(
    steps=59, beta_schedule="scaled_linear", beta_start=0.0017151399, beta_end=0.0227274461, prediction_type="epsilon"
)
@example(steps=100, beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, prediction_type="epsilon")
def test_trajectory_equals_diffusers_for_any_steps_and_betas(steps: int, **options: Any) -> None:
    schedule, scheduler = Schedule.from_config(options, steps), reference(options, steps)
    sigmas = scheduler.sigmas.numpy().astype(np.float64)
    assert np.all(np.abs(schedule.sigmas - sigmas) <= sigmas * table_tolerance(schedule))
    # The tables are compared above; this compares the integration, on one table.
    schedule = dataclasses.replace(schedule, sigmas=sigmas, coefficients=lms.lms_coefficients(sigmas, 4))
    ours, theirs = our_trajectory(schedule, unit_noise()), diffusers_trajectory(scheduler, unit_noise())
    tolerance = TRAJECTORY_TOLERANCE * max(1, schedule.init_noise_sigma / ROUNDING_MATTERS_FROM_SIGMA)
    assert largest_difference(ours, theirs) < tolerance


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 37, 100, 999, 1000])
def test_timesteps_and_sigmas_equal_diffusers(steps: int) -> None:
    schedule, scheduler = Schedule.from_config(SD_V1, steps), reference(SD_V1, steps)
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=SIGMA_TOLERANCE)
    assert schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=SIGMA_TOLERANCE)
    assert schedule.num_inference_steps == steps


def test_trained_betas_equal_diffusers() -> None:
    config = {"trained_betas": np.linspace(0.001, 0.02, 50).tolist(), "num_train_timesteps": 50}
    schedule, scheduler = Schedule.from_config(config, 20), reference(config, 20)
    np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=SIGMA_TOLERANCE)
    with pytest.raises(UsageError, match="1 to 50"):
        Schedule.from_config(config, 51)


def exact_coefficient(nodes: list[Fraction], j: int, start: Fraction, end: Fraction) -> Fraction:
    """Integrate a Lagrange polynomial in rational arithmetic."""
    polynomial = [Fraction(1)]
    for k, node in enumerate(nodes):
        if k != j:
            scale = nodes[j] - node
            padded = [Fraction(0), *polynomial]
            polynomial = [
                (padded[m] - node * (polynomial[m] if m < len(polynomial) else 0)) / scale for m in range(len(padded))
            ]
    return sum((c * (end ** (m + 1) - start ** (m + 1)) / (m + 1) for m, c in enumerate(polynomial)), Fraction(0))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_coefficients_are_exact(order: int, beta_schedule: str) -> None:
    schedule = Schedule.from_config(SD_V1 | {"beta_schedule": beta_schedule}, 30, order)
    sigmas = [Fraction(sigma) for sigma in schedule.sigmas]
    assert schedule.coefficients.shape == (30, 4)
    for i, row in enumerate(schedule.coefficients):
        nodes = sigmas[max(0, i + 1 - order) : i + 1][::-1]
        exact = [float(exact_coefficient(nodes, j, sigmas[i], sigmas[i + 1])) for j in range(len(nodes))]
        # Some twenty float64 roundings, none of them amplified.
        np.testing.assert_allclose(row[: len(nodes)], exact, rtol=1e-14)
        assert not row[len(nodes) :].any()


@given(steps=st.integers(1, 1000))
@settings(deadline=None, derandomize=True)
def test_every_step_integrates_cubics_exactly(steps: int) -> None:
    schedule = Schedule.from_config(SD_V1, steps)
    last = np.arange(3, steps)[:, np.newaxis]
    nodes = schedule.sigmas[last - np.arange(4)] - schedule.sigmas[last]
    width = np.diff(schedule.sigmas)[3:]
    for power in range(4):
        terms = schedule.coefficients[3:] * nodes**power
        # Terms of both signs cancel here: the error is relative to their size, not to the sum's.
        error = np.abs(terms.sum(axis=1) - width ** (power + 1) / (power + 1))
        assert np.all(error <= 1e-13 * np.abs(terms).sum(axis=1))


def test_a_schedule_is_a_value() -> None:
    schedule = Schedule.from_config(SD_V1, 5)
    for array in (schedule.timesteps, schedule.sigmas, schedule.coefficients):
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.sigmas = schedule.timesteps  # type: ignore[misc]


def test_the_graph_sees_the_numbers_the_host_sees() -> None:
    schedule = Schedule.from_config(SD_V1, 17)
    for array in (schedule.timesteps, schedule.sigmas):
        np.testing.assert_array_equal(array, array.astype(np.float32))


def test_functions_keep_float32_and_leave_their_inputs_alone() -> None:
    latents, output = unit_noise(), unit_noise()[::-1].copy()
    sigma, row = np.float64(3.7), np.array([-0.5, 0.25, 0.0, 0.0])
    results = [
        lms.scale_model_input(latents, sigma),
        lms.derivative(latents, output, sigma, "v_prediction"),
        lms.step(latents, [output, latents], row),
        lms.add_noise(latents, output, sigma),
    ]
    assert all(result.dtype == np.float32 for result in results)
    np.testing.assert_array_equal(latents, unit_noise())
    np.testing.assert_array_equal(output, unit_noise()[::-1])
    np.testing.assert_allclose(results[2], 1.25 * latents - 0.5 * output, rtol=1e-5, atol=1e-6)


def test_add_noise_equals_diffusers() -> None:
    scheduler, schedule = reference(SD_V1, 10), Schedule.from_config(SD_V1, 10)
    latents, noise = unit_noise(), unit_noise()[::-1].copy()
    theirs = scheduler.add_noise(torch.from_numpy(latents), torch.from_numpy(noise), scheduler.timesteps[4:5])
    # One product and one sum in float32, on sigmas that differ by SIGMA_TOLERANCE.
    np.testing.assert_allclose(lms.add_noise(latents, noise, schedule.sigmas[4]), theirs.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9, 2.5, float("nan"), True, "5", None])
def test_steps_outside_the_range_are_refused(steps: Any) -> None:
    with pytest.raises(UsageError, match=r"num_inference_steps .* 1 to 1000"):
        Schedule.from_config(SD_V1, steps)


@pytest.mark.parametrize("order", [0, 5])
def test_an_order_outside_the_range_is_refused(order: int) -> None:
    with pytest.raises(UsageError, match=r"order .* 1 to 4"):
        Schedule.from_config(SD_V1, 10, order)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"beta_start": "0.1"}, "beta_start"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"beta_start": 0}, "beta_start"),
        ({"beta_start": 1e-12, "beta_end": 1e-12}, "betas"),
        ({"beta_start": 0.9, "beta_end": 0.99}, "betas"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, "trained_betas.1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"_class_name": "LMSDiscreteScheduler", "timestep_spacing": "leading"}, "timestep_spacing"),
    ],
)
def test_what_lms_cannot_honour_is_refused_by_name(options: dict[str, Any], names: str) -> None:
    with pytest.raises(ArtefactError, match=rf"scheduler_config\.json: .*\b{names}\b") as caught:
        Schedule.from_config(SD_V1 | options, 10)
    assert "\n" not in caught.value.message


def test_other_samplers_options_do_not_count() -> None:
    other = {"_class_name": "PNDMScheduler", "timestep_spacing": "leading", "steps_offset": 1, "solver_order": 2}
    ours, plain = Schedule.from_config(SD_V1 | other, 10), Schedule.from_config(SD_V1, 10)
    np.testing.assert_array_equal(ours.sigmas, plain.sigmas)
    np.testing.assert_array_equal(ours.timesteps, plain.timesteps)


def test_classes_without_betas_are_refused_by_name() -> None:
    """Check diffusers' classes without betas, whose pictures LMS over default betas would ruin."""
    without = set()
    for path in (Path(diffusers.__file__).parent / "schedulers").rglob("scheduling_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and "SchedulerMixin" in [ast.unparse(base) for base in node.bases]:
                (init,) = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
                if "beta_start" not in [argument.arg for argument in init.args.args]:
                    without.add(node.name)
    assert without == WITHOUT_BETAS
    for name in sorted(without):
        # Betas may be left over from the class that the config was made from.
        with pytest.raises(ArtefactError, match=f"_class_name is '{name}': a scheduler without betas") as caught:
            Schedule.from_config({**SD_V1, "_class_name": name}, 5)
        assert "tuned from" in caught.value.hint
