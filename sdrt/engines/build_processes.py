"""Compilation of components in parallel, each in its own process, within the available memory."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from sdrt import errors
from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines.build_worker import Answer, Failure, Note, Percent
from sdrt.engines.builders.base import ComponentJob
from sdrt.errors import EngineError, ResourceError, SdrtError
from sdrt.files import disk_errors
from sdrt.progress import Advance, Progress, silent

# A compiler holds the graph's weights as read, as packed and as written.
MEMORY_PER_WEIGHT_BYTE = 3
MEMORY_OF_PROCESS_BYTES = 300 << 20
MEMORY_SHARE = 0.8
READ_BYTES = 1 << 16
# Below this, starting a second process takes longer than it saves (docs/decisions/0012).
SMALL_BYTES = 256 << 20
LOOK_AFTER_S = 1.0


class Lane:
    """A worker process and its current job. Leaving the ``with`` block kills the process.

    Args:
        log: Open file that the process's stderr is written to.
    """

    def __init__(self, log: IO[bytes]) -> None:
        self.job: ComponentJob | None = None
        self._stage = ExitStack()
        self._advance: Advance = lambda _: None
        self._percent = 0
        self._progress: Progress = silent
        self._log = log
        # The worker imports the modules that this process imports, and none from the current folder.
        places = [str(Path(errors.__file__).parents[1]), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sdrt.engines.build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            bufsize=0,
        )
        self._jobs = cast("IO[bytes]", self._process.stdin)
        # Unbuffered, so that select() sees everything that is still unread.
        self.answers = cast("IO[bytes]", self._process.stdout)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()
        self.answers.close()
        self._stage.__exit__(kind, error, trace)

    def give(self, job: ComponentJob, progress: Progress) -> None:
        """Send a job to the process and open its progress stage."""
        self.job, self._percent, self._progress = job, 0, progress
        total = 100 if job.recipe else None
        self._advance = self._stage.enter_context(
            progress.stage(f"{job.backend} {job.component} {job.precision}", total)
        )
        # If the worker has died, reading its answer raises the error.
        with contextlib.suppress(BrokenPipeError):
            self._jobs.write(job.model_dump_json().encode() + b"\n")

    @property
    def component(self) -> ComponentName:
        """The component that is being compiled."""
        if self.job is None:
            raise EngineError("a process that has no job answered", hint="report it")
        return self.job.component

    def is_dead(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def take(self) -> EngineComponent | None:
        """Read the worker's messages; return the job's result, or None if it is still running.

        Raises:
            SdrtError: The build failed, or the process ended.
        """
        data = b"" if self.is_dead() else self.answers.read(READ_BYTES)
        if not data:
            raise self._ended()
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            said = Answer.model_validate_json(line).result
            if isinstance(said, EngineComponent):
                self._stage.close()
                self.job = None
                return said
            self._handle(said)
        return None

    def _handle(self, said: Failure | Percent | Note) -> None:
        if isinstance(said, Failure):
            kind: type[SdrtError] = getattr(errors, said.kind)
            raise kind(said.message, hint=said.hint)
        if isinstance(said, Percent):
            self._advance(said.percent - self._percent)
            self._percent = said.percent
        else:
            self._progress.note(said.note)

    def _ended(self) -> SdrtError:
        code = self._process.wait()
        what = f"the process that compiled {self.component}"
        if code == -signal.SIGKILL:
            return ResourceError(
                f"{what} was killed, most likely because memory ran out", hint="free memory and try again"
            )
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        ended = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
        return EngineError(f"{what} {ended}; its last output: {said[-1]}", hint="report it with the bundle's manifest")


def build_all(
    jobs: Sequence[ComponentJob], progress: Progress, memory_bytes: int | None, at_once: int
) -> dict[ComponentName, EngineComponent]:
    """Compile components, the largest first, and return them by name in the order of the jobs.

    Args:
        jobs: Components to compile.
        progress: Progress callback; one stage a component.
        memory_bytes: Available memory; None if unknown.
        at_once: Largest number of components that are compiled at the same time.

    Raises:
        SdrtError: A component failed; the other processes are killed.
    """
    waiting = sorted(jobs, key=memory_needed, reverse=True)
    small = sum(job.source_bytes for job in jobs) < SMALL_BYTES
    built: dict[ComponentName, EngineComponent] = {}
    with _lanes(1 if small else min(at_once, len(jobs)), jobs[0].folder) as (lanes, selector):
        while len(built) < len(jobs):
            _hand_out(waiting, lanes, progress, memory_bytes)
            ready: list[Lane] = [key.data for key, _ in selector.select(LOOK_AFTER_S)]
            # A worker's own children may keep its pipe open when it dies.
            dead = [lane for lane in lanes if lane.job is not None and lane.is_dead()]
            for lane in ready or dead:
                name, engine = lane.component, lane.take()
                if engine is not None:
                    built[name] = engine
    return {job.component: built[job.component] for job in jobs}


def memory_needed(job: ComponentJob) -> int:
    """Return an upper estimate of the bytes of memory that compiling a job takes."""
    return MEMORY_OF_PROCESS_BYTES + MEMORY_PER_WEIGHT_BYTE * job.source_bytes


def _hand_out(waiting: list[ComponentJob], lanes: list[Lane], progress: Progress, memory_bytes: int | None) -> None:
    """Give idle lanes the next jobs that fit in memory; if all are idle, one job whether it fits or not."""
    for lane in lanes:
        if lane.job is not None or not waiting:
            continue
        busy = [other.job for other in lanes if other.job is not None]
        taken = sum(map(memory_needed, busy))
        fitting = [
            job
            for job in waiting
            if not busy or memory_bytes is None or taken + memory_needed(job) <= memory_bytes * MEMORY_SHARE
        ]
        if fitting:
            waiting.remove(fitting[0])
            lane.give(fitting[0], progress)


@contextlib.contextmanager
def _lanes(count: int, folder: Path) -> Iterator[tuple[list[Lane], selectors.BaseSelector]]:
    """Start workers and a selector of their answers; their logs are unnamed files in ``folder``, which is writable."""
    with ExitStack() as stack, disk_errors(folder):
        selector = stack.enter_context(selectors.DefaultSelector())
        lanes = []
        for _ in range(count):
            lanes.append(stack.enter_context(Lane(stack.enter_context(tempfile.TemporaryFile(dir=folder)))))
            selector.register(lanes[-1].answers, selectors.EVENT_READ, lanes[-1])
        yield lanes, selector
