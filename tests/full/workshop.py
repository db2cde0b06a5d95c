"""A folder where stages of the full-size model run as processes of their own, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Workshop:
    """A folder in which stages run as processes of their own, and what each of them took."""

    folder: Path
    rows: list[tuple[str, float, float]] = field(default_factory=list)

    def run(self, stage: str, *words: str | Path) -> str:
        """Run a Python process to its end, note its seconds and peak memory, and give what it printed."""
        command = [sys.executable, *map(str, words)]
        start = time.monotonic()
        with (self.folder / "said.txt").open("wb") as said, (self.folder / "printed.txt").open("wb") as printed:
            # Popen.wait would drop the process's own rusage, which os.wait4 gives.
            process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.rows.append((stage, time.monotonic() - start, usage.ru_maxrss / (1 << 20)))
        assert process.returncode == 0, (self.folder / "said.txt").read_text(errors="replace")
        return (self.folder / "printed.txt").read_text()

    def sdrt(self, stage: str, *words: str | Path) -> Any:
        """Run ``sdrt`` with --json."""
        return json.loads(self.run(stage, "-m", "sdrt", *words, "--json"))

    def peak_gib(self, stage: str) -> float:
        """The largest process of a stage."""
        return max(peak for name, _, peak in self.rows if name == stage)

    def table(self) -> str:
        """All stages so far."""
        lines = [f"{name:32}{seconds:8.1f} s {peak:8.2f} GiB" for name, seconds, peak in self.rows]
        return "\n".join(["", f"{'stage':32}{'time':>10} {'peak memory':>12}", *lines])
