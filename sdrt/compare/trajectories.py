"""Latents after each step against the reference's, from the same noise: error by step, and where it grows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.compare.metrics import measure
from sdrt.compare.schema import Outcome, ToleranceRecord, TrajectoryResult
from sdrt.compare.tolerances import Tolerances
from sdrt.engines.engine_set import EngineSet
from sdrt.errors import NumericError
from sdrt.progress import Progress, silent
from sdrt.runtime.latents import unit_noise
from sdrt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.compare.reference import Trajectory
    from sdrt.runtime.request import Request

Latents = npt.NDArray[np.float32]
#: Below this error a factor means nothing: the last bits of fp32.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a candidate drew of a request: the latents after each step, [n, 4, 64, 64], and the pictures.

    ``error`` says why it ended early, with fewer steps and no pictures; "" where it did not.
    """

    latents: tuple[Latents, ...]
    pictures: tuple[Image.Image, ...]
    error: str = ""


def draw(engines: EngineSet, request: Request, progress: Progress = silent, *, threads: int | None = None) -> Drawn:
    """Run a request through the runtime as it is deployed, keeping the latents after each step.

    Raises:
        BackendUnavailableError: The backend cannot run here.
        EngineError: The engines do not open.
    """
    steps: dict[int, list[Latents]] = {}

    def keep(_: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> None:
        steps.setdefault(step, []).append(values["latents"].copy())

    model = engines.manifest.model
    shape = (model.latent_channels, model.latent_size, model.latent_size)
    noise = unit_noise([picture.seed for picture in request.pictures], shape)
    pictures: tuple[Image.Image, ...] = ()
    error = ""
    with Pipeline(engines, threads=threads) as pipeline:
        try:
            result = pipeline.run(request, latents=noise, callback_on_step_end=keep, progress=progress)
            pictures = tuple(result.images)
        except NumericError as found:
            error = found.message
    whole = [np.concatenate(steps[step]) for step in sorted(steps)]
    return Drawn(tuple(rows for rows in whole if len(rows) == len(noise)), pictures, error)


def compare_trajectories(
    reference: Trajectory, drawn: Drawn, engines: EngineSet, tolerances: Tolerances
) -> tuple[TrajectoryResult, ...]:
    """One result a picture of the request.

    Args:
        reference: How PyTorch denoised the request.
        drawn: How the engines did; see `draw`.
        engines: What drew it.
        tolerances: What the error may reach after any step.
    """
    manifest = engines.manifest
    precision = manifest.components["unet"].precision if "unet" in manifest.components else manifest.precision
    tolerance = tolerances.of("", manifest.backend, precision, "trajectory")
    return tuple(_compare(reference, drawn, index, tolerance) for index in range(len(reference.request.pictures)))


def _compare(reference: Trajectory, drawn: Drawn, index: int, tolerance: ToleranceRecord | None) -> TrajectoryResult:
    picture, steps = reference.request.pictures[index], reference.request.num_inference_steps
    errors: list[float] = []
    reason = ""
    for expected, actual in zip(reference.latents[1:], drawn.latents, strict=False):
        metrics, reason = measure(actual[index], expected[index])
        if metrics is None:
            reason = f"step {len(errors) + 1}: {reason}"
            break
        errors.append(metrics.relative_l2)
    if not reason and len(errors) != steps:
        reason = drawn.error or f"{len(errors)} of {steps} steps were run"
    limit = tolerance.relative_l2 if tolerance else None
    first_over = next((step for step, error in enumerate(errors) if limit is not None and not error <= limit), None)
    if not reason and first_over is not None and limit is not None:
        reason = f"step {first_over + 1}: relative_l2 is {errors[first_over]:.3g}; {limit:.3g} is allowed"
    outcome: Outcome = "failed" if reason else "passed"
    if not reason and limit is None:
        outcome, reason = "unverified", "no tolerance is known for this backend and precision"
    return TrajectoryResult(
        prompt=picture.prompt,
        seed=picture.seed,
        steps=steps,
        relative_l2=tuple(errors),
        grows_at=grows_at(errors),
        first_over=first_over,
        tolerance=tolerance,
        outcome=outcome,
        reason=reason,
    )


def grows_at(errors: Sequence[float]) -> int | None:
    """The step, counted from 0, where the error rises by the largest factor; None where it never rises."""
    floored = [max(error, ROUNDING) for error in (0.0, *errors)]
    factors = [after / before for before, after in itertools.pairwise(floored)]
    largest = max(factors, default=1.0)
    return factors.index(largest) if largest > 1 else None
