"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere, nothing for ``silent``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from sdrt.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Advance = Callable[[int], None]


class Progress(Protocol):
    """Interface by which long work reports its progress."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Open a stage of ``total`` units (None: unknown); yield a function to call with the number of units done."""

    def note(self, text: str) -> None:
        """Print one line."""


class Silent:
    """Progress that reports nothing."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Do nothing."""
        yield lambda _: None

    def note(self, text: str) -> None:
        """Do nothing."""


class Lines:
    """Progress in lines, one when a stage starts and one when it ends, for logs."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Print when the stage starts, and how long it took when it ends."""
        start = time.monotonic()
        self.note(f"{name} ...")
        yield lambda _: None
        self.note(f"{name}: {time.monotonic() - start:.1f} s")

    def note(self, text: str) -> None:
        """Print one line on stderr; a closed pipe or a full disk does not stop the work."""
        with contextlib.suppress(OSError):
            print(printable(text), file=sys.stderr, flush=True)


class Bars:
    """Progress as rich's bars, one row for each stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        bars = self

        class Rows(RichProgress):
            def get_renderables(self) -> Iterator[RenderableType]:
                if bars.above is not None:
                    yield bars.above
                yield from super().get_renderables()

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        #: Renderable above the rows while there are any.
        self.above: RenderableType | None = None
        self._bars = Rows(*columns, console=Console(stderr=True))
        self._open = 0

    @property
    def coloured(self) -> bool:
        """True if the terminal shows colours and the user has not turned them off."""
        console = self._bars.console
        return console.is_terminal and console.color_system is not None and not console.no_color

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Show the stage's row until the last open stage ends."""
        if self._open == 0:
            self._bars.start()
        self._open += 1
        # A stage of the same name replaces the finished row: a queue has one for every run.
        for row in [row.id for row in self._bars.tasks if row.finished and row.description == name]:
            self._bars.remove_task(row)
        task = self._bars.add_task(name, total=total)
        try:
            yield lambda units: self._bars.advance(task, units)
            self._bars.update(task, total=total or 1, completed=total or 1)
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
                for row in self._bars.task_ids:
                    self._bars.remove_task(row)

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


silent = Silent()


def for_terminal() -> Progress:
    """Return bars if stderr is a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()
