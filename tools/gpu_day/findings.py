"""Findings of a part of a GPU day, in a JSON file that is rewritten after every finding."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sdrt.files import write_atomically

State = Literal["running", "done", "failed", "skipped", "timed out", "died"]
#: States of a part that need attention.
BAD: frozenset[State] = frozenset({"failed", "timed out", "died"})


class Check(BaseModel):
    """A condition, and whether it was met."""

    model_config = ConfigDict(frozen=True)

    name: str
    good: bool
    detail: str


class Report(BaseModel):
    """Findings of one part. ``reason`` tells why it was skipped or how it ended."""

    model_config = ConfigDict(validate_assignment=True)

    part: str
    state: State = "running"
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = {}
    checks: list[Check] = []


class Skipped(Exception):  # noqa: N818  # Not an error: the part does not apply here.
    """Raised by a part that cannot run on this machine; the message gives the reason."""


class Findings:
    """Collects facts and checks of a part.

    Args:
        folder: Folder of PART.json.
        part: Name of the part.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.report = Report(part=part)
        self._folder = folder
        self._start = time.perf_counter()
        self._write()

    def fact(self, name: str, value: Any) -> None:
        """Record a number or text, and print it."""
        self.report.facts[name] = value
        print(f"  {name:52} {value}", flush=True)
        self._write()

    def check(self, name: str, good: bool, detail: object = "") -> None:
        """Record whether a condition is met, and print it."""
        self.report.checks.append(Check(name=name, good=bool(good), detail=str(detail)))
        print(f"  {name:52} {'ok' if good else 'WRONG'} {detail}", flush=True)
        self._write()

    def close(self, state: State | None = None, reason: str = "") -> Report:
        """Write and return the report; without a given state, the checks decide it."""
        by_checks: State = "done" if all(check.good for check in self.report.checks) else "failed"
        self.report.state, self.report.reason = state or by_checks, reason
        self._write()
        return self.report

    def _write(self) -> None:
        self.report.seconds = round(time.perf_counter() - self._start, 2)
        write_report(self._folder, self.report)


def write_report(folder: Path, report: Report) -> None:
    """Write PART.json atomically."""
    data = json.dumps(report.model_dump(mode="json"), indent=1, default=str) + "\n"
    write_atomically(folder / f"{report.part}.json", data.encode())


def read_report(folder: Path, part: str) -> Report | None:
    """Return a part's report; None if it wrote none, or an unreadable one."""
    try:
        return Report.model_validate_json((folder / f"{part}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def tail(path: Path, size_bytes: int = 2000) -> str:
    """Return the last ``size_bytes`` of a log as text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read().decode(errors="replace").strip()
