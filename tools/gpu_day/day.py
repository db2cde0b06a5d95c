"""Runs the parts of a GPU day one after another, each in a process of its own, and reports them as they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.files import write_atomically
from tools.gpu_day.findings import Findings, Report, Skipped, read_report, tail, write_report
from tools.gpu_day.page import day_page

if TYPE_CHECKING:
    from tools.gpu_day.workbench import Workbench

PAGE = "index.html"
SUMMARY = "day.json"
#: Seconds between SIGTERM and SIGKILL for a part that is out of time.
GRACE_S = 5.0

PartFunction = Callable[[Findings, "Workbench"], None]


@dataclass(frozen=True)
class Part:
    """A part of the day.

    Attributes:
        name: Name of the part.
        place: Module and function that run it.
        limit_s: Seconds after which it is ended.
        decides: Questions that it answers, in a line.
    """

    name: str
    place: tuple[str, str]
    limit_s: float
    decides: str

    def function(self) -> PartFunction:
        """Import and return the function that runs it; only then is torch imported."""
        module, name = self.place
        function: PartFunction = getattr(import_module(f"tools.gpu_day.{module}"), name)
        return function


#: Parts, the most informative ones first.
PARTS = (
    Part("inventory", ("part_machine", "inventory"), 60, "what is here; whether doctor and auto are right"),
    Part("cuda", ("part_cuda", "cuda_calls"), 60, "every CUDA call; capture, replay, refusal, memory that runs out"),
    Part("plans", ("part_plans", "plans"), 400, "the demo by the latency recipe: log kept, attentions fused or not"),
    Part("pictures", ("part_plans", "pictures"), 180, "whether a fault lies in the plans or in their capture"),
    Part("loop", ("part_loop", "loop"), 120, "graphs, repeats, callbacks and the plain loop with torch's kernels"),
    Part("tests", ("part_plans", "gpu_tests"), 600, "the GPU tests, up to five failures"),
    Part("numbers", ("part_numbers", "numbers"), 120, "fp16 of the exported graphs against fp32; largest values"),
    Part("full-size", ("part_plans", "full_size"), 900, "full size: latency against default recipe, 1 and 4 pictures"),
    Part("speed", ("part_speed", "speed"), 300, "the ceilings; our graphs and diffusers by torch, as CUDA graphs"),
    Part("lost", ("part_machine", "lost"), 60, "what a GPU that failed looks like; last, since it may stay so"),
)


def part_named(name: str) -> Part:
    """Return a part by its name."""
    return next(part for part in PARTS if part.name == name)


def run_here(part: Part, bench: Workbench) -> Report:
    """Run a part in this process; an exception ends in its report."""
    found = Findings(bench.out, part.name)
    try:
        part.function()(found, bench)
    except Skipped as reason:
        return found.close("skipped", str(reason))
    except Exception as error:
        found.close("failed", f"{type(error).__name__}: {error}")
        raise
    return found.close()


def run_apart(part: Part, out: Path, command: Sequence[str], limit_s: float | None = None) -> Report:
    """Run a part in a process of its own, under its limit.

    Args:
        part: Part to run.
        out: Folder of the findings.
        command: Command line that runs a part, to which the part's name is appended.
        limit_s: Limit in seconds; None is the part's own.
    """
    log = out / f"{part.name}.log"
    (out / f"{part.name}.json").unlink(missing_ok=True)
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, part.name], stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code: int | None = process.wait(limit_s or part.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    report = read_report(out, part.name) or Report(part=part.name)
    last = tail(log).splitlines()[-1:] or ["it printed nothing"]
    if code is None:
        report.state, report.reason = "timed out", f"after {limit_s or part.limit_s:g} s; last line: {last[0]}"
    elif code and report.state in ("running", "done"):
        ended = f"signal {-code}" if code < 0 else f"code {code}"
        report.state, report.reason = "died", f"of {ended}; last line: {last[0]}"
    report.seconds = round(time.perf_counter() - start, 2)
    write_report(out, report)
    return report


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_day(parts: Sequence[Part], out: Path, command: Sequence[str]) -> list[Report]:
    """Run parts in turn, and update the page and the summary after each."""
    reports: list[Report] = []
    for part in parts:
        print(f"{part.name}: {part.decides}", flush=True)
        report = run_apart(part, out, command)
        reports.append(report)
        wrong = [check.name for check in report.checks if not check.good]
        print(f"{part.name}: {report.state} in {report.seconds} s {report.reason}{'; '.join(wrong)}", flush=True)
        show(parts, reports, out)
    return reports


def show(parts: Sequence[Part], reports: Sequence[Report], out: Path) -> None:
    """Write the summary and the page."""
    decides = {part.name: part.decides for part in parts}
    summary = {"parts": [report.model_dump(mode="json") for report in reports], "ahead": [*decides][len(reports) :]}
    for name, text in ((SUMMARY, json.dumps(summary, indent=1) + "\n"), (PAGE, day_page(decides, reports))):
        write_atomically(out / name, text.encode())


def main(words: Sequence[str]) -> int:
    """Run one part for `run_apart`; the arguments are OUT STORE CHECKPOINT FULL_SIZE NAME."""
    from sdrt.artefacts.store import Store
    from tools.gpu_day.workbench import Workbench

    out, store, checkpoint, full_size, name = words
    bench = Workbench(out=Path(out), store=Store(Path(store)), checkpoint=checkpoint, full_size=Path(full_size))
    run_here(part_named(name), bench)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
