"""A queue of prompts: lines of equal settings are merged into batches, and every picture finds its line again."""

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

#: Groups that go through a component before it is let go of, where components do not stay: opening one again takes
#: about a second, a group of full-size pictures minutes.
GROUPS_A_RUN = 8


class Draws(Protocol):
    """What the queue needs of a pipeline."""

    keep_loaded: bool

    def with_defaults(self, request: Request) -> Request:
        """Return the request with what the checkpoint recommends where it was left open."""

    def pictures_at_once(self, request: Request) -> int:
        """Return how many of the request's pictures are denoised together."""

    def run(self, request: Request, *, image: Image.Image | None = None, progress: Progress = silent) -> Result:
        """Draw the pictures of a checked request."""


@dataclass(frozen=True)
class Slot:
    """Where a picture belongs: the number of its line, and which of that line's pictures it is, counted from 0."""

    line: int
    index: int
    picture: Picture


@dataclass(frozen=True)
class Finished:
    """One picture of the queue: made, with its record and what was cut off its prompt; or the error in its place."""

    slot: Slot
    image: Image.Image | None = None
    record: dict[str, Any] | None = None
    truncated: str = ""
    error: NumericError | None = None


@dataclass(frozen=True)
class Run:
    """Pictures that the pipeline is asked for at once."""

    request: Request
    slots: tuple[Slot, ...]


def plan_runs(pipeline: Draws, lines: Sequence[Line]) -> list[Run]:
    """The lines' pictures, those of equal settings together whatever stands between them, in the order of the file."""
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
    """Make the pictures of all lines, each as soon as its run is done.

    A run in which numbers go wrong is tried again in halves, so that the pictures at fault are the only ones lost.

    Args:
        pipeline: What makes them.
        lines: What is asked for.
        timings: The seconds of every run are added to it.
        image: A picture that all start from, where the lines' requests say so.
        progress: Told of every picture.
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
