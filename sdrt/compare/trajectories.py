"""Latents after each step against the reference's, from the same noise: error by step, and where it grows."""

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
#: What runs the steps, as `Pipeline.denoiser` chooses for a guided request.
DENOISERS: tuple[ComponentName, ...] = ("denoise_step", "unet")
#: Below this error a factor means nothing: the last bits of fp32.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a candidate drew of one picture: the latents after each step, [4, 64, 64], and the picture.

    ``error`` says why it ended early, with fewer steps or no picture; "" where it did not.
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
    """Run a request through the runtime as it is deployed, keeping the latents after each step.

    Pictures that are denoised together end together where one of them is not finite; the others are drawn.

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
    """One result a picture of the request.

    Args:
        reference: How PyTorch denoised the request.
        drawn: How the engines did, picture by picture; see `draw`.
        engines: What drew it.
        tolerances: What the error may reach after any step.
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
    """The step, counted from 0, whose error is the largest multiple of the step's before; None where none rises.

    The first step follows nothing, so no factor is known of it.
    """
    floored = [max(error, ROUNDING) for error in errors]
    factors = [after / before for before, after in itertools.pairwise(floored)]
    largest = max(factors, default=1.0)
    return factors.index(largest) + 1 if largest > 1 else None
