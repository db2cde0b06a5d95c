"""A queue of prompts: lines of equal settings are merged into batches, and each picture keeps its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from sdrt.errors import NumericError
from sdrt.limits import MAX_PICTURES
from sdrt.progress import Progress, silent
from sdrt.runtime.prompt_file import Line
from sdrt.runtime.request import Picture, Request

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.runtime.result import Result, Timings

#: Batches that run through a component before it is closed, if components are not kept loaded: opening one again takes
#: about a second, a batch of full-size pictures minutes.
GROUPS_A_RUN = 8


class Draws(Protocol):
    """The part of a pipeline that the queue uses."""

    keep_loaded: bool

    def with_defaults(self, request: Request) -> Request:
        """Return the request with the checkpoint's recommendations for settings that were not given."""

    def pictures_at_once(self, request: Request) -> int:
        """Return how many of the request's pictures are denoised together."""

    def run(self, request: Request, *, image: Image.Image | None = None, progress: Progress = silent) -> Result:
        """Draw the pictures of a checked request."""


@dataclass(frozen=True)
class Slot:
    """A picture's place in the file: the number of its line, and its index in that line, counted from 0."""

    line: int
    index: int
    picture: Picture


@dataclass(frozen=True)
class Finished:
    """One picture of the queue with its record and the truncated part of its prompt; or the error in its place."""

    slot: Slot
    image: Image.Image | None = None
    record: dict[str, Any] | None = None
    truncated: str = ""
    error: NumericError | None = None


@dataclass(frozen=True)
class Run:
    """Pictures that are drawn by one call of the pipeline."""

    request: Request
    slots: tuple[Slot, ...]


def plan_runs(pipeline: Draws, lines: Sequence[Line]) -> list[Run]:
    """Group the lines' pictures into runs of equal settings; pictures and runs keep the order of the file."""
    waiting: dict[Request, list[Slot]] = {}
    for line in lines:
        slots = [Slot(line.number, index, picture) for index, picture in enumerate(line.request.pictures)]
        waiting.setdefault(pipeline.with_defaults(line.request).batch_key(), []).extend(slots)
    runs = []
    for settings, together in waiting.items():
        at_once = pipeline.pictures_at_once(settings)
        size = min(at_once * (1 if pipeline.keep_loaded else GROUPS_A_RUN), MAX_PICTURES)
        runs += [_run(settings, together[first : first + size]) for first in range(0, len(together), size)]
    return runs


def run_queue(
    pipeline: Draws,
    lines: Sequence[Line],
    timings: Timings,
    *,
    image: Image.Image | None = None,
    progress: Progress = silent,
) -> Iterator[Finished]:
    """Draw the pictures of all lines, and yield each as soon as its run is done.

    A run that raises NumericError is tried again in halves, so that only the pictures at fault are lost.

    Args:
        pipeline: The pipeline.
        lines: The lines of a prompt file.
        timings: The seconds of every run are added to it.
        image: Initial picture of all requests that have a ``start_step``.
        progress: Progress callback; counts the pictures.
    """
    runs = plan_runs(pipeline, lines)
    with progress.stage("pictures", sum(len(run.slots) for run in runs)) as advance:
        while runs:
            run = runs.pop(0)
            try:
                result = pipeline.run(run.request, image=image, progress=progress)
            except NumericError as error:
                if len(run.slots) > 1:
                    half = len(run.slots) // 2
                    runs[:0] = [_run(run.request, run.slots[:half]), _run(run.request, run.slots[half:])]
                    continue
                advance(1)
                yield Finished(run.slots[0], error=error)
                continue
            timings.add(result.timings)
            advance(len(run.slots))
            made = zip(run.slots, result.images, result.records, result.truncated, strict=True)
            yield from (Finished(slot, picture, record, lost) for slot, picture, record, lost in made)


def _run(settings: Request, slots: Sequence[Slot]) -> Run:
    return Run(replace(settings, pictures=tuple(slot.picture for slot in slots)), tuple(slots))
