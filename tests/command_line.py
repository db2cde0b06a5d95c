"""The command line as tests use it: run in this process, with its exit code and output as a value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdrt.cli import main


@dataclass(frozen=True)
class Ended:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of the error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("sdrt: ")]
        assert self.err.endswith(f"{line}\n"), "something was said after the error"
        assert "Traceback" not in self.err
        return line

    @property
    def json(self) -> Any:
        """The output of --json, parsed."""
        return json.loads(self.out)


class CommandLine:
    """Runs ``sdrt`` with the given words."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str | Path | int | float) -> Ended:
        """Run it to its end; return what it printed since the last call."""
        self._capture.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, err = self._capture.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return Ended(code, out, err)
