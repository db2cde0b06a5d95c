"""A terminal that keeps its output."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True
