"""Error by step: its growth, the first step over, results that never pass, and the tiny checkpoint's own runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sdrt.artefacts.engine_set import EngineSet
from sdrt.compare.reference import Reference, ReferenceTrajectory
from sdrt.compare.schema import TrajectoryResult
from sdrt.compare.tolerances import Tolerances, load
from sdrt.compare.trajectories import Drawn, Latents, compare_trajectories, draw, grows_at
from sdrt.pipeline import Pipeline
from sdrt.runtime.request import make_request
from sdrt.sampling import lms
from sdrt.sampling.lms import Schedule
from tests.helpers.fixtures import Engines


@pytest.fixture
def engines(tiny_engines: Engines) -> EngineSet:
    return tiny_engines("onnxruntime", "fp32")


def with_error(trajectory: ReferenceTrajectory, *shares: float) -> Drawn:
    """Return a candidate's trajectory whose latents differ by these shares, step by step."""
    steps = trajectory.latents[1:]
    return Drawn(tuple(x[0] * np.float32(1 + share) for x, share in zip(steps, shares, strict=False)), None)


def compared(trajectory: ReferenceTrajectory, drawn: Drawn, engines: EngineSet) -> TrajectoryResult:
    (result,) = compare_trajectories(trajectory, [drawn], engines, load())
    return result


def test_error_by_step(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    result = compared(tiny_trajectory, with_error(tiny_trajectory, 1e-5, 2e-5, 1e-2, 2e-2, 1e-4, 1e-5), engines)
    # A share of one step's latents, to the rounding of 1 + 1e-5 in float32.
    assert result.relative_l2 == pytest.approx((1e-5, 2e-5, 1e-2, 2e-2, 1e-4, 1e-5), rel=0.02)
    assert (result.grows_at, result.first_over, result.outcome) == (2, 2, "failed")
    assert result.reason.startswith("step 3: relative_l2 is 0.01; ")


def test_all_within_passes(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    result = compared(tiny_trajectory, with_error(tiny_trajectory, *[1e-5] * 6), engines)
    assert (result.outcome, result.reason, result.first_over) == ("passed", "", None)
    assert result.prompt == "a red circle above a blue square"
    assert (result.seed, result.steps) == (5, 6)


@pytest.mark.parametrize("steps", [0, 5])
def test_fewer_steps_never_pass(tiny_trajectory: ReferenceTrajectory, engines: EngineSet, steps: int) -> None:
    result = compared(tiny_trajectory, with_error(tiny_trajectory, *[0.0] * steps), engines)
    assert (result.outcome, result.reason) == ("failed", f"{steps} of 6 steps were run")
    assert len(result.relative_l2) == steps


def test_what_stopped_a_run_is_said(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    drawn = replace(with_error(tiny_trajectory, 0.0), error="unet gave 1 NaN")
    assert compared(tiny_trajectory, drawn, engines).reason == "unet gave 1 NaN"


def test_nan_never_passes(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    drawn = with_error(tiny_trajectory, *[0.0] * 6)
    drawn.latents[3][0, 0, 0] = np.nan
    result = compared(tiny_trajectory, drawn, engines)
    assert (result.outcome, len(result.relative_l2)) == ("failed", 3)
    assert result.reason.startswith("step 4: the candidate has 1 NaN")


def test_without_a_tolerance_it_is_unverified(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    drawn = with_error(tiny_trajectory, *[0.5] * 6)
    (result,) = compare_trajectories(tiny_trajectory, [drawn], engines, Tolerances({}))
    assert (result.outcome, result.first_over) == ("unverified", None)


@pytest.mark.parametrize(
    ("errors", "step"),
    [
        ([], None),
        ([0.1], None),
        ([0, 0], None),
        ([1e-9, 5e-7], None),
        ([1e-3, 1e-3], None),
        ([1e-3, 2e-4], None),
        ([1e-6, 2e-6, 1e-5, 1.1e-5], 2),
        # As in bf16: large from the first step on, and the jump is at the last step but one.
        ([0.0067, 0.009, 0.011, 0.02, 0.17, 0.133], 4),
    ],
)
def test_where_it_grows(errors: list[float], step: int | None) -> None:
    assert grows_at(errors) == step


def test_the_runtime_draws_what_pytorch_draws(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    (drawn,) = draw(engines, tiny_trajectory.request, threads=1)
    result = compared(tiny_trajectory, drawn, engines)
    assert (result.outcome, result.reason) == ("passed", "")
    assert drawn.picture is not None
    assert len(result.relative_l2) == 6


def test_a_schedule_of_a_lower_order_fails(
    tiny_reference: Reference, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In six steps the oldest derivative weighs no more than rounding may.
    trajectory = tiny_reference.denoise(make_request("a red circle", seed=5, num_inference_steps=12))
    from_config = Schedule.from_config

    def third_order(config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
        return from_config(config, num_inference_steps, order=3)

    monkeypatch.setattr(Schedule, "from_config", third_order)
    (drawn,) = draw(engines, trajectory.request, threads=1)
    result = compared(trajectory, drawn, engines)
    # The first three steps are the same.
    assert (result.outcome, result.first_over, result.grows_at) == ("failed", 3, 3)


@pytest.mark.parametrize("nan_from", [0, 5])
def test_a_run_that_gives_nan_is_a_finding(
    nan_from: int, tiny_reference: Reference, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two pictures of four steps, one after the other.
    trajectory = tiny_reference.denoise(make_request(["a red circle", ""], seed=5, num_inference_steps=4))
    monkeypatch.setattr(Pipeline, "pictures_at_once", lambda *_: 1)
    step, calls = lms.step, itertools.count()

    def broken(latents: Latents, *rest: Any) -> Latents:
        factor = np.float32(1 if next(calls) < nan_from else np.nan)
        return step(latents, *rest) * factor

    monkeypatch.setattr(lms, "step", broken)
    drawn = draw(engines, trajectory.request, threads=1)
    first, second = compare_trajectories(trajectory, drawn, engines, load())
    assert (second.outcome, len(second.relative_l2), drawn[1].picture) == ("failed", nan_from and 1, None)
    assert "NaN" in second.reason
    if nan_from:
        # Earlier pictures are unchanged.
        assert (first.outcome, first.reason) == ("passed", "")
        assert drawn[0].picture is not None
    else:
        assert (first.outcome, drawn[0].latents, drawn[0].picture) == ("failed", (), None)


def test_the_tolerance_is_that_of_what_runs_the_steps(tiny_trajectory: ReferenceTrajectory, engines: EngineSet) -> None:
    manifest = engines.manifest
    step = manifest.components["unet"].model_copy(update={"precision": "bf16"})
    others = {name: part for name, part in manifest.components.items() if name != "unet"}
    for parts in (others, manifest.components):
        update = {"components": dict(parts) | {"denoise_step": step}, "backend": "openvino"}
        fused = replace(engines, manifest=manifest.model_copy(update=update))
        result = compared(tiny_trajectory, with_error(tiny_trajectory, *[0.0] * 6), fused)
        assert result.tolerance == load().of("", "openvino", "bf16", "trajectory")
