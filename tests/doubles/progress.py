"""A progress callback that records its stages and notes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sdrt.progress import Advance


class Notes:
    """Records the names of stages and the notes, in order.

    Args:
        notes: List to append the notes to; a new one by default.
    """

    def __init__(self, notes: list[str] | None = None) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = [] if notes is None else notes

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        self.stages.append(name)
        yield lambda _: None

    def note(self, text: str) -> None:
        self.notes.append(text)
