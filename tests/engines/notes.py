"""A progress that remembers what it was told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sdrt.progress import Advance


class Notes:
    """Stages and notes, in order."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        self.stages.append(name)
        yield lambda _: None

    def note(self, text: str) -> None:
        self.notes.append(text)
