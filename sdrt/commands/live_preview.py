"""Previews of ``sdrt denoise``, in a terminal with colours and as files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdrt.files import disk_errors, write_atomically
from sdrt.progress import Bars, Progress
from sdrt.runtime.preview import Preview

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    from sdrt.pipeline import Pipeline

#: Width of a picture in a terminal, in columns; each row of characters holds two of pixels.
COLUMNS = 32
#: Pictures side by side.
SIDE_BY_SIDE = 4
#: Shortest time between two drawings in the terminal; drawing takes CPU time from denoising.
INTERVAL_S = 0.25
#: Scale of the pictures in files relative to the latents.
ENLARGED = 4


class HalfBlocks:
    """Pictures side by side as half-block characters, which show two pixels each, one above the other."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        shown = [np.asarray(picture.resize((COLUMNS, COLUMNS), Image.Resampling.BOX)) for picture in pictures]
        self._pixels = np.concatenate(shown[:SIDE_BY_SIDE], axis=1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the rows of characters, cut to the terminal's width."""
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        for upper, lower in zip(self._pixels[::2], self._pixels[1::2], strict=True):
            for top, bottom in zip(upper[: options.max_width].tolist(), lower.tolist(), strict=False):
                yield Segment("\u2580", Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom)))
            yield Segment.line()


class LivePreview:
    """A callback_on_step_end that shows and writes previews.

    Args:
        count: Pictures of the whole request.
        bars: Progress bars to show them above; None shows none.
        folder: Folder to write them to; None writes none.

    Attributes:
        written: The files, in order.
    """

    def __init__(self, count: int, bars: Bars | None, folder: Path | None) -> None:
        self.written: list[Path] = []
        self._preview = Preview(self._show)
        self._count = count
        self._bars = bars
        self._folder = folder
        self._first, self._size = 0, 0
        self._shown_s = -INTERVAL_S

    def __call__(self, pipeline: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> None:
        """Show and write the latents after a step."""
        if step == 0:
            # A new group of pictures begins.
            self._first += self._size
            self._size = len(values["latents"])
        self._preview(pipeline, step, timestep, values)

    def _show(self, steps: int, pictures: Sequence[Image.Image]) -> None:
        now = time.monotonic()
        if self._bars is not None and now - self._shown_s >= INTERVAL_S:
            self._bars.above = HalfBlocks(pictures)
            self._shown_s = now
        if self._folder is not None:
            for number, picture in enumerate(pictures, start=self._first + 1):
                stem = f"step-{steps:04}" if self._count == 1 else f"{number:04}-step-{steps:04}"
                self._write(self._folder / f"{stem}.png", picture)

    def _write(self, path: Path, picture: Image.Image) -> None:
        """Write a picture, enlarged."""
        size = (picture.width * ENLARGED, picture.height * ENLARGED)
        stream = BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
        write_atomically(path, stream.getvalue())
        self.written.append(path)


def live_preview(count: int, in_terminal: bool, folder: Path | None, progress: Progress) -> LivePreview | None:
    """Return the callback that shows and writes previews of a request; None, with a note, if it could do neither.

    Args:
        count: Number of pictures of the request.
        in_terminal: Whether to show previews in the terminal.
        folder: Folder to write previews to; created if missing. None writes none.
        progress: Progress bars to show them above, if these are in a terminal with colours.

    Raises:
        ResourceError: The folder cannot be created.
    """
    bars = progress if isinstance(progress, Bars) and progress.coloured else None
    if in_terminal and bars is None:
        progress.note("--preview needs a terminal with colours; --preview-dir writes files")
    if folder is not None:
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
    elif bars is None:
        return None
    return LivePreview(count, bars if in_terminal else None, folder)
