"""A folder where stages of the full-size model run as separate processes, measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
#: Starts a command and prints its exit code and peak memory in KiB: Popen.wait would drop os.wait4's result.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=file)
"""


@dataclass(frozen=True)
class Measured:
    """A process's exit code, duration, and the peak memory of it or a child."""

    exit_code: int
    seconds: float
    peak_gib: float


def measured(command: Sequence[str], *, stdout: IO[bytes], stderr: IO[bytes] | None = None) -> Measured:
    """Run a command in the project's folder to its end.

    A small process starts it: the kernel counts memory from before exec() into a process's peak, so that a child of
    pytest would start with pytest's.
    """
    start = time.monotonic()
    with tempfile.NamedTemporaryFile("r") as said:
        starter = [sys.executable, "-I", "-c", MEASURE, said.name, *command]
        subprocess.run(starter, cwd=ROOT, stdout=stdout, stderr=stderr, check=True)
        exit_code, peak_kib = map(int, said.read().split())
    return Measured(exit_code, time.monotonic() - start, peak_kib / (1 << 20))


@dataclass
class Workshop:
    """A folder in which stages run as separate processes, with their measurements."""

    folder: Path
    rows: list[tuple[str, float, float]] = field(default_factory=list)

    def run(self, stage: str, *words: str | Path) -> str:
        """Run a Python process to its end, record its seconds and peak memory, and return its output."""
        command = [sys.executable, *map(str, words)]
        with (self.folder / "said.txt").open("wb") as said, (self.folder / "printed.txt").open("wb") as printed:
            took = measured(command, stdout=printed, stderr=said)
        self.rows.append((stage, took.seconds, took.peak_gib))
        assert took.exit_code == 0, (self.folder / "said.txt").read_text(errors="replace")
        return (self.folder / "printed.txt").read_text()

    def sdrt(self, stage: str, *words: str | Path) -> Any:
        """Run ``sdrt`` with --json."""
        return json.loads(self.run(stage, "-m", "sdrt", *words, "--json"))

    def peak_gib(self, stage: str) -> float:
        """Return the peak memory of a stage's largest process, in GiB."""
        return max(peak for name, _, peak in self.rows if name == stage)

    def table(self) -> str:
        """Return all stages so far as a table."""
        lines = [f"{name:32}{seconds:8.1f} s {peak:8.2f} GiB" for name, seconds, peak in self.rows]
        return "\n".join(["", f"{'stage':32}{'time':>10} {'peak memory':>12}", *lines])
