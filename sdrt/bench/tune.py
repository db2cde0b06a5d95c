"""Search for the fastest accurate configuration of a bundle on this machine, one parameter at a time.

Backends and precisions are compared first; then, for the best, the loop, the batch that engines are built for, and the
number of threads. A configuration replaces the best only if it is accurate and faster, pair by pair
(docs/decisions/0052).
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

#: Share of the time that a configuration has to save to replace a simpler one: less may be chance.
LEAST_SAVING = 0.02
#: Precisions that are tried by default. int8 is not among them: its loss of accuracy is visible.
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class TuneSettings:
    """Request to tune for (pictures and steps), number of measurements, and configurations to try."""

    pictures: int = 1
    steps: int = 10
    rounds: int = 5
    backends: tuple[BackendName, ...] = BACKENDS
    precisions: tuple[Precision, ...] = PRECISIONS
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A configuration that was built and is accurate."""

    choice: Choice
    trial: Trial
    engines: EngineSet


def tune(source: Source, settings: TuneSettings, store: Path | None = None, progress: Progress = silent) -> TuneRecord:
    """Find the fastest accurate configuration and write the record to the store.

    Args:
        source: Checkpoint or bundle.
        settings: Request to tune for, and configurations to try.
        store: Store of bundles, engines and the record; None is the user's.
        progress: Progress callback.

    Raises:
        UsageError: The source is an engine set, which cannot be tuned.
        BackendUnavailableError: No backend can run here, or torch, which the accuracy check needs, is missing.
        SdrtError: The bundle or its checkpoint cannot be opened.
    """
    if source.engines:
        raise UsageError("engines cannot be tuned: they are built already", hint="give the bundle or the checkpoint")
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
    """The search and its trials so far."""

    def __init__(
        self, source: Source, bundle: Bundle, store: Store, settings: TuneSettings, progress: Progress
    ) -> None:
        self._source, self._bundle, self._store = source, bundle, store
        self._settings, self._progress = settings, progress
        self._threads = settings.threads or usable_cpus()
        self._judge = Judge(find_checkpoint(source, bundle), progress, bundle.manifest.token_merging)
        self._trials: list[Trial] = []

    def run(self) -> tuple[Trial, ...]:
        """Run the search and return every trial, in the order in which they were made."""
        candidates: list[_Candidate] = []
        for choice in self._backends_and_precisions():
            candidate = self._try(choice)
            if candidate is not None:
                candidates.append(candidate)
        if not candidates:
            return tuple(self._trials)
        best = self._compete(candidates[0], candidates[1:], first=True)
        variations: Sequence[Callable[[_Candidate], Choice | None]] = (
            self._other_loop,
            self._fixed_batch,
            self._half_threads,
        )
        for variation in variations:
            varied = variation(best)
            candidate = self._try(varied) if varied is not None else None
            if candidate is not None:
                best = self._compete(best, [candidate])
        return tuple(self._trials)

    def _backends_and_precisions(self) -> Iterator[Choice]:
        """Yield the requested configurations that can be built and run here.

        Raises:
            BackendUnavailableError: There is none.
        """
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

    def _try(self, choice: Choice) -> _Candidate | None:
        """Build a configuration and check its accuracy; None if it drops out, for the reason noted in its trial."""
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
        return _Candidate(choice, trial, engines)

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

    def _compete(self, holder: _Candidate, others: Sequence[_Candidate], *, first: bool = False) -> _Candidate:
        """Measure candidates in turn and return the best: the holder unless another saves `LEAST_SAVING`.

        Args:
            holder: The best candidate so far.
            others: Candidates to compare with it; each becomes a trial.
            first: Whether the holder has no trial yet.
        """
        seconds = self._measure([holder, *others])
        ratios = {each: paired(seconds[each], seconds[holder]).p50 for each in others}
        best = min(ratios, key=lambda each: ratios[each], default=holder)
        if best is not holder and ratios[best] > 1 - LEAST_SAVING:
            best = holder
        for each in [holder, *others] if first else others:
            self._note(_measured_trial(each, seconds[each], ratios.get(each), kept=each is best, holder=holder))
        return best

    def _measure(self, candidates: Sequence[_Candidate]) -> dict[_Candidate, list[float]]:
        """Measure the seconds of a request by each candidate, in turn, after a warm-up run.

        Raises:
            EngineError: A candidate that ran in the accuracy check fails now, most likely because memory ran out.
        """
        settings = self._settings
        seconds: dict[_Candidate, list[float]] = {each: [] for each in candidates}
        with temporary_folder() as folder, ExitStack() as stack:
            work = Work(
                (PROMPT,) * settings.pictures,
                tuple(range(settings.pictures)),
                settings.steps,
                GUIDANCE_SCALE,
                str(folder / "picture.png"),
            )
            live = {each: stack.enter_context(Process(self._job(each), str(folder))) for each in candidates}
            with self._progress.stage("measure", settings.rounds * len(candidates)) as advance:
                for turn in range(-1, settings.rounds):
                    for each in candidates if turn % 2 else reversed(candidates):
                        total = live[each].run(work).total
                        if turn >= 0:
                            seconds[each].append(total)
                            advance(1)
        return seconds

    def _job(self, candidate: _Candidate) -> Job:
        return Job(
            "sdrt",
            candidate.trial.precision,
            candidate.trial.threads,
            engines=str(candidate.engines.path),
            store=str(self._store.root),
            loop=candidate.choice.loop,
        )

    def _note(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._progress.note(f"{'kept' if trial.kept else 'not kept'}: {trial.name}: {trial.why}")

    def _other_loop(self, best: _Candidate) -> Choice | None:
        """Return the choice with the other loop of the guided step; None if the bundle has only one."""
        if STEP not in self._bundle.manifest.components:
            return None
        if best.trial.loop == "plain":
            return replace(best.choice, fused=True)
        return replace(best.choice, loop="plain", fused=False)

    def _fixed_batch(self, best: _Candidate) -> Choice:
        """Return the choice with engines for exactly the batch to tune for."""
        pictures = self._settings.pictures
        return replace(best.choice, batch=BatchRange(min=pictures, opt=pictures, max=pictures))

    def _half_threads(self, best: _Candidate) -> Choice | None:
        """Return the choice with half of the threads: if two share a core, one may be faster; None if that is 0."""
        half = best.trial.threads // 2
        return replace(best.choice, threads=half) if half else None


def _measured_trial(
    candidate: _Candidate, seconds: Sequence[float], ratio: float | None, *, kept: bool, holder: _Candidate
) -> Trial:
    """Return a candidate's trial with its times and the verdict."""
    did = f"{min(seconds):.3f} s a request at best"
    if ratio is not None:
        did = f"{ratio:.2f} times as long as {holder.trial.name}"
    changes = {"seconds": tuple(seconds), "times_as_long": ratio, "kept": kept, "why": f"{did}; {candidate.trial.why}"}
    return candidate.trial.model_copy(update=changes)
