"""Rounds of a benchmark: every contender runs once a round, so that a slower machine slows all of them alike."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdrt.bench.contender import Job, Ran, Work
from sdrt.bench.process import Process
from sdrt.bench.schema import BenchSettings
from sdrt.errors import EngineError
from sdrt.progress import Progress

#: Seed of the first picture; the others have the next ones.
SEED = 0


@dataclass
class ColdValues:
    """Seconds from the start of a process to each event, one value a round."""

    imported: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    peak_memory_bytes: list[int] = field(default_factory=list)


@dataclass
class Measured:
    """All measured values; lists have one value a round.

    Attributes:
        cold: Contender -> cold starts, of one picture each.
        warm: Batch -> contender -> runs.
        limits: Batch -> results of `sdrt.bench.ceiling.MachineCeiling.measure`.
        problems: Contender -> error that ended its measurement early.
        pictures: Contender -> path of its first picture.
    """

    cold: dict[str, ColdValues] = field(default_factory=dict)
    warm: dict[int, dict[str, list[Ran]]] = field(default_factory=dict)
    limits: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    problems: dict[str, EngineError] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)


def measure(
    jobs: Mapping[str, Job],
    settings: BenchSettings,
    precisions: Sequence[str],
    device: str,
    folder: Path,
    progress: Progress,
) -> Measured:
    """Measure cold starts, and then warm runs of every batch.

    Args:
        jobs: Contenders by name.
        settings: Numbers of rounds and steps, batches, and the prompt.
        precisions: Precisions of the machine's ceiling.
        device: Device of the machine's ceiling, cpu or cuda.
        folder: Folder for pictures and for the compilers' caches.
        progress: Progress callback.
    """
    measured = Measured()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        with progress.stage("cold", settings.cold_rounds * len(jobs)) as advance:
            for turn in range(settings.cold_rounds):
                for name in _order(jobs, turn):
                    _measure_cold(name, jobs[name], settings, cache, folder, measured)
                    advance(1)
        with contextlib.ExitStack() as open_processes:
            live: dict[str, Process] = {}
            for name in jobs:
                if name not in measured.problems:
                    process = _start(name, jobs[name], cache, measured, open_processes)
                    if process is not None:
                        live[name] = process
            if not live:
                return measured
            limits = open_processes.enter_context(Process(Job("ceiling", "fp32", settings.threads), cache))
            question = {"threads": settings.threads, "device": device, "precisions": list(precisions)}
            for batch in settings.batches:
                with progress.stage(f"warm, batch {batch}", settings.rounds * len(live)) as advance:
                    for name in _warm(live, batch, settings, folder, measured, limits, question):
                        measured.pictures.setdefault(name, _png(folder, name))
                        advance(1)
    return measured


def _order(names: Mapping[str, object], turn: int) -> list[str]:
    """Return the names in an order that is reversed every other turn: A B, B A, A B."""
    return list(names) if turn % 2 == 0 else list(reversed(list(names)))


def _png(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.png"


def _work(settings: BenchSettings, batch: int, png: Path, *, watch: bool = False) -> Work:
    seeds = tuple(range(SEED, SEED + batch))
    return Work((settings.prompt,) * batch, seeds, settings.steps, settings.guidance_scale, str(png), watch)


def _measure_cold(name: str, job: Job, settings: BenchSettings, cache: str, folder: Path, measured: Measured) -> None:
    """Measure one process from its start to its first picture."""
    if name in measured.problems:
        return
    try:
        with Process(replace(job, keep_loaded=False), cache) as process:
            ran = process.run(_work(settings, 1, _png(folder, name), watch=True))
    except EngineError as error:
        measured.problems[name] = error
        return
    values = measured.cold.setdefault(name, ColdValues())
    values.imported.append(process.loaded["imported_at"] - process.started_at)
    values.loaded.append(process.loaded["loaded_at"] - process.started_at)
    values.picture.append(ran.picture_at - process.started_at)
    if ran.peak_memory_bytes is not None:
        values.peak_memory_bytes.append(ran.peak_memory_bytes)
    if ran.first_step_at is not None:
        values.first_step.append(ran.first_step_at - process.started_at)


def _start(name: str, job: Job, cache: str, measured: Measured, stack: contextlib.ExitStack) -> Process | None:
    try:
        return stack.enter_context(Process(job, cache))
    except EngineError as error:
        measured.problems[name] = error
        return None


def _warm(
    live: dict[str, Process],
    batch: int,
    settings: BenchSettings,
    folder: Path,
    measured: Measured,
    limits: Process,
    question: Mapping[str, object],
) -> Iterator[str]:
    """Run the rounds of one batch after a warm-up run, and yield the name after each run.

    A contender that fails is dropped.
    """
    runs: dict[str, list[Ran]] = {name: [] for name in live}
    measured.warm[batch] = runs
    measured.limits[batch] = []
    for turn in range(-1, settings.rounds):
        if turn >= 0:
            measured.limits[batch].append(limits.ask(question))
        for name in _order(live, turn + 1):
            png = _png(folder, name) if turn < 0 else folder / "again.png"
            try:
                ran = live[name].run(_work(settings, batch, png))
            except EngineError as error:
                measured.problems[name] = error
                del runs[name]
                live.pop(name).close()
                continue
            if turn >= 0:
                runs[name].append(ran)
                yield name
