"""The fastest accurate way to run a bundle on this machine, found one question at a time.

First backends and precisions against each other; then, of the best, the loop, the batch that engines are built for, and
the threads. A way becomes the best only where it is accurate and faster, pair by pair (docs/decisions/0052).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.store import Store
from sdrt.artefacts.tuned import Trial, TuneRecord, machine_key, write_record
from sdrt.bench.accuracy import GUIDANCE_SCALE, Judge
from sdrt.bench.contender import Job, Work
from sdrt.bench.plan import find_checkpoint
from sdrt.bench.process import Process
from sdrt.bench.statistics import paired
from sdrt.engines import build as engines_build
from sdrt.engines.builders import builder
from sdrt.errors import BackendUnavailableError, EngineError, UsageError
from sdrt.files import temporary_folder
from sdrt.machine.cpu import usable_cpus
from sdrt.prepare.bundles import bundle_precision, open_bundle
from sdrt.prepare.choice import STEP, Choice, build_request
from sdrt.prepare.source import Source
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import BACKENDS, available
from sdrt.version import __version__

if TYPE_CHECKING:
    from sdrt.artefacts.bundle import Bundle
    from sdrt.artefacts.engine_set import BackendName, EngineSet
    from sdrt.artefacts.manifest import Precision

#: A way has to save this share of the time to be kept: less may be chance, and the simpler way is kept.
LEAST_SAVING = 0.02
#: Precisions that are tried unless asked otherwise: int8 costs accuracy that shows, so it is asked for by name.
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Settings:
    """What to tune for: requests of so many pictures at so many steps, each way measured so often."""

    pictures: int = 1
    steps: int = 10
    rounds: int = 5
    backends: tuple[BackendName, ...] = BACKENDS
    precisions: tuple[Precision, ...] = PRECISIONS
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class _Way:
    """A way that was built and is accurate."""

    choice: Choice
    trial: Trial
    engines: EngineSet


def tune(source: Source, settings: Settings, store: Path | None = None, progress: Progress = silent) -> TuneRecord:
    """Find the fastest accurate way and keep the record in the store.

    Raises:
        UsageError: Engines are given, which are built already.
        BackendUnavailableError: No backend can run here, or torch, which accuracy is checked with, is missing.
        SdrtError: The bundle or its checkpoint cannot be opened.
    """
    if source.engines:
        raise UsageError("engines are given, and they are built already", hint="give the bundle or the checkpoint")
    user_store = Store.at(store)
    bundle = open_bundle(source, user_store, progress=progress)
    tuner = _Tuner(source, bundle, user_store, settings, progress)
    trials = tuner.run()
    record = TuneRecord(
        schema_version=1,
        sdrt=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine_key(),
        checkpoint=bundle.checkpoint.name,
        bundle_digest=bundle.digest,
        pictures=settings.pictures,
        steps=settings.steps,
        trials=trials,
    )
    user_store.prepare()
    write_record(user_store.root, record)
    return record


class _Tuner:
    """The search, and everything it has found so far."""

    def __init__(self, source: Source, bundle: Bundle, store: Store, settings: Settings, progress: Progress) -> None:
        self._source, self._bundle, self._store = source, bundle, store
        self._settings, self._progress = settings, progress
        self._threads = settings.threads or usable_cpus()
        self._judge = Judge(find_checkpoint(source, bundle), progress, bundle.manifest.token_merging)
        self._trials: list[Trial] = []

    def run(self) -> tuple[Trial, ...]:
        """Every trial, in the order in which they were made."""
        ways = [way for choice in self._backends_and_precisions() for way in [self._try(choice)] if way is not None]
        if not ways:
            return tuple(self._trials)
        best = self._compete(ways[0], ways[1:], first=True)
        questions: Sequence[Callable[[_Way], Choice | None]] = (self._other_loop, self._fixed_batch, self._half_threads)
        for question in questions:
            choice = question(best)
            way = self._try(choice) if choice is not None else None
            if way is not None:
                best = self._compete(best, [way])
        return tuple(self._trials)

    def _backends_and_precisions(self) -> Iterator[Choice]:
        """What can be built and run here."""
        found = False
        for backend in self._settings.backends:
            try:
                available(backend)
            except BackendUnavailableError as error:
                self._progress.note(f"{backend} is left out: {error.message}")
                continue
            maker = builder(backend)
            for precision in (name for name in self._settings.precisions if name in maker.precisions):
                try:
                    maker.precision(precision)
                except BackendUnavailableError as error:
                    self._progress.note(f"{backend} {precision} is left out: {error.message}")
                    continue
                found = True
                yield Choice(backend, precision, self._threads)
        if not found:
            raise BackendUnavailableError("no backend can run here", hint="sdrt doctor says what is missing")

    def _try(self, choice: Choice) -> _Way | None:
        """Build a way and check it; None where it drops out, whose trial says why."""
        try:
            engines = self._build(choice)
            accurate, why = self._judge.judge(
                engines, threads=choice.threads or self._threads, loop=choice.loop, progress=self._progress
            )
        except (BackendUnavailableError, EngineError) as error:
            self._note(self._trial(choice, accurate=False, why=error.message))
            return None
        trial = self._trial(choice, accurate=accurate, why=why)
        if not accurate:
            self._note(trial)
            return None
        return _Way(choice, trial, engines)

    def _build(self, choice: Choice) -> EngineSet:
        exported = bundle_precision(choice.backend, choice.precision)
        bundle = self._bundle
        if exported != "fp32":
            bundle = open_bundle(self._source, self._store, precision=exported, progress=self._progress)
        return engines_build.build(bundle, build_request(choice, bundle), self._store, self._progress)

    def _trial(self, choice: Choice, *, accurate: bool | None, why: str) -> Trial:
        held = builder(choice.backend).components(frozenset(self._bundle.manifest.components))
        fused = choice.loop == "auto" and (choice.fused or STEP in held)
        return Trial(
            backend=choice.backend,
            precision=choice.precision or "fp32",
            batch=choice.batch.opt if choice.batch else None,
            threads=choice.threads or self._threads,
            loop="fused" if fused else "plain",
            accurate=accurate,
            why=why,
        )

    def _compete(self, holder: _Way, others: Sequence[_Way], *, first: bool = False) -> _Way:
        """Measure ways in turn; the best is the holder unless another saves enough, pair by pair.

        Args:
            holder: The best way known.
            others: What it is measured against; each becomes a trial.
            first: Whether the holder has no trial yet.
        """
        seconds = self._measure([holder, *others])
        ratios = {way: paired(seconds[way], seconds[holder]).p50 for way in others}
        best = min(ratios, key=lambda way: ratios[way], default=holder)
        if best is not holder and ratios[best] > 1 - LEAST_SAVING:
            best = holder
        for way in [holder, *others] if first else others:
            self._note(_judged(way, seconds[way], ratios.get(way), kept=way is best, holder=holder))
        return best

    def _measure(self, ways: Sequence[_Way]) -> dict[_Way, list[float]]:
        """Seconds of a request by each way, in turn, after one that warms up.

        Raises:
            EngineError: A way that drew the reference's pictures does not run now; out of memory, most likely.
        """
        settings = self._settings
        seconds: dict[_Way, list[float]] = {way: [] for way in ways}
        with temporary_folder() as folder, ExitStack() as stack:
            work = Work(
                (PROMPT,) * settings.pictures,
                tuple(range(settings.pictures)),
                settings.steps,
                GUIDANCE_SCALE,
                str(folder / "picture.png"),
            )
            live = {way: stack.enter_context(Process(self._job(way), str(folder))) for way in ways}
            with self._progress.stage("measure", settings.rounds * len(ways)) as advance:
                for turn in range(-1, settings.rounds):
                    for way in ways if turn % 2 else reversed(ways):
                        total = live[way].run(work).total
                        if turn >= 0:
                            seconds[way].append(total)
                            advance(1)
        return seconds

    def _job(self, way: _Way) -> Job:
        return Job(
            "sdrt",
            way.trial.precision,
            way.trial.threads,
            engines=str(way.engines.path),
            store=str(self._store.root),
            loop=way.choice.loop,
        )

    def _note(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._progress.note(f"{'kept' if trial.kept else 'not kept'}: {trial.name}: {trial.why}")

    def _other_loop(self, best: _Way) -> Choice | None:
        """The other way to run a guided step; None where the bundle has one only."""
        if STEP not in self._bundle.manifest.components:
            return None
        if best.trial.loop == "plain":
            return replace(best.choice, fused=True)
        return replace(best.choice, loop="plain", fused=False)

    def _fixed_batch(self, best: _Way) -> Choice:
        """Engines for exactly so many pictures."""
        pictures = self._settings.pictures
        return replace(best.choice, batch=BatchRange(min=pictures, opt=pictures, max=pictures))

    def _half_threads(self, best: _Way) -> Choice | None:
        """Half of the threads: where two share a core, one may do more."""
        half = best.trial.threads // 2
        return replace(best.choice, threads=half) if half else None


def _judged(way: _Way, seconds: Sequence[float], ratio: float | None, *, kept: bool, holder: _Way) -> Trial:
    """A way's trial with how it did."""
    did = f"{min(seconds):.3f} s a request at best"
    if ratio is not None:
        did = f"{ratio:.2f} times as long as {holder.trial.name}"
    changes = {"seconds": tuple(seconds), "times_as_long": ratio, "kept": kept, "why": f"{did}; {way.trial.why}"}
    return way.trial.model_copy(update=changes)
