"""Latents after each step compared with the reference's, from the same noise: the error by step, and its growth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.compare.metrics import measure
from sdrt.compare.schema import Outcome, ToleranceRecord, TrajectoryResult
from sdrt.compare.tolerances import Tolerances
from sdrt.errors import NumericError
from sdrt.pipeline import Pipeline
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.compare.reference import ReferenceTrajectory
    from sdrt.runtime.request import Request

Latents = npt.NDArray[np.float32]
#: Components that can run the steps, in the order in which `Pipeline.denoiser` chooses for a guided request.
DENOISERS: tuple[ComponentName, ...] = ("denoise_step", "unet")
#: Smaller errors are rounding of fp32; growth among them is ignored.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """A candidate's run of one picture: the latents after each step, float32 [4, 64, 64], and the picture.

    ``error`` says why it ended early, with fewer steps or no picture; "" if it did not.
    """

    latents: tuple[Latents, ...]
    picture: Image.Image | None
    error: str = ""


def draw(
    engines: EngineSet,
    request: Request,
    progress: Progress = silent,
    *,
    threads: int | None = None,
    loop: str = "auto",
) -> tuple[Drawn, ...]:
    """Run a request through the runtime as deployed, keeping the latents after each step.

    If the latents of a picture become non-finite, all pictures denoised together with it end there; the others are
    drawn.

    Returns:
        One run per picture of the request.

    Raises:
        BackendUnavailableError: The backend cannot run here.
        EngineError: The engines do not open.
    """
    drawn: list[Drawn] = []
    with Pipeline(engines, threads=threads, loop=loop) as pipeline:
        together = pipeline.pictures_at_once(request)
        for first in range(0, len(request.pictures), together):
            group = replace(request, pictures=request.pictures[first : first + together])
            drawn += _draw_together(pipeline, group, progress)
    return tuple(drawn)


def _draw_together(pipeline: Pipeline, request: Request, progress: Progress) -> list[Drawn]:
    steps: list[Latents] = []

    def keep(_pipeline: Pipeline, _step: int, _timestep: float, values: dict[str, Any]) -> None:
        steps.append(values["latents"].copy())

    pictures: list[Image.Image | None] = [None] * len(request.pictures)
    error = ""
    try:
        pictures = [*pipeline.run(request, callback_on_step_end=keep, progress=progress).images]
    except NumericError as found:
        error = found.message
    return [Drawn(tuple(rows[index] for rows in steps), picture, error) for index, picture in enumerate(pictures)]


def compare_trajectories(
    reference: ReferenceTrajectory, drawn: Sequence[Drawn], engines: EngineSet, tolerances: Tolerances
) -> tuple[TrajectoryResult, ...]:
    """Compare each picture's latents with the reference's after every step.

    Args:
        reference: The reference's trajectory of the request.
        drawn: The engines' runs, one per picture; see `draw`.
        engines: The engines that drew them.
        tolerances: Table of limits; the limit applies after every step.

    Returns:
        One result per picture of the request.
    """
    manifest = engines.manifest
    parts = [manifest.components[name] for name in DENOISERS if name in manifest.components]
    precision = parts[0].precision if parts else manifest.precision
    tolerance = tolerances.of("", manifest.backend, precision, "trajectory")
    return tuple(_compare(reference, index, each, tolerance) for index, each in enumerate(drawn))


def _compare(
    reference: ReferenceTrajectory, index: int, drawn: Drawn, tolerance: ToleranceRecord | None
) -> TrajectoryResult:
    picture, steps = reference.request.pictures[index], reference.request.num_inference_steps
    errors: list[float] = []
    reason = ""
    for expected, actual in zip(reference.latents[1:], drawn.latents, strict=False):
        metrics, reason = measure(actual, expected[index])
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
    """Return the step, from 0, whose error is the largest multiple of the previous step's; None if none rises.

    The first step has no previous one, so it is never returned.
    """
    floored = [max(error, ROUNDING) for error in errors]
    factors = [after / before for before, after in itertools.pairwise(floored)]
    largest = max(factors, default=1.0)
    return factors.index(largest) + 1 if largest > 1 else None
