"""Previews of ``sdrt denoise``: above the progress bars of a terminal that shows colours, and as files."""

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
#: A terminal is not drawn more often than that; drawing takes processor time from the denoising.
INTERVAL_S = 0.25
#: Files are this many times as wide and high as latents.
ENLARGED = 4


class HalfBlocks:
    """Pictures side by side as characters: the upper half of each in one pixel's colour, the lower in another's."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        shown = [np.asarray(picture.resize((COLUMNS, COLUMNS), Image.Resampling.BOX)) for picture in pictures]
        self._pixels = np.concatenate(shown[:SIDE_BY_SIDE], axis=1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """The rows that fit the terminal's width."""
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
        bars: Where they are shown; None shows none.
        folder: Where they are written; None writes none.

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
        """Show the latents after a step."""
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
        """Write one picture, enlarged."""
        size = (picture.width * ENLARGED, picture.height * ENLARGED)
        stream = BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
        write_atomically(path, stream.getvalue())
        self.written.append(path)


def live_preview(count: int, in_terminal: bool, folder: Path | None, progress: Progress) -> LivePreview | None:
    """What shows and writes previews of a request; None where there is nowhere to, which is said.

    Args:
        count: Pictures of the request.
        in_terminal: Whether to show them.
        folder: Where to write them; made when absent. None writes none.
        progress: Where they are shown, if it can.

    Raises:
        ResourceError: The folder cannot be made.
    """
    bars = progress if isinstance(progress, Bars) and progress.coloured else None
    if in_terminal and bars is None:
        progress.note("--preview shows nothing here: this is no terminal with colours; --preview-dir writes files")
    if folder is not None:
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
    elif bars is None:
        return None
    return LivePreview(count, bars if in_terminal else None, folder)
