"""The process that compiles: reads jobs from stdin and writes answers to stdout, one JSON line each.

Compilers may crash, take all memory or never return. A process of its own can be killed at any moment, which frees its
memory.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from typing import IO

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import Record
from sdrt.engines.builders import Report, builder
from sdrt.engines.builders.base import ComponentJob
from sdrt.errors import SdrtError
from sdrt.files import disk_errors

# prctl(2): the signal that this process receives when the thread that started it ends.
PR_SET_PDEATHSIG = 1


class Failure(Record):
    """An error of sdrt.errors, to be raised by the parent."""

    kind: str
    message: str
    hint: str


class Percent(Record):
    """Progress of the job, 0 to 100."""

    percent: int


class Note(Record):
    """One line for the user."""

    note: str


class Answer(Record):
    """One line of the worker: the result of a job, or news of its progress."""

    result: EngineComponent | Failure | Percent | Note


class Talk:
    """A report that writes progress to the parent.

    Args:
        answers: Stream that answers are written to.
    """

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers

    def percent(self, done: int) -> None:
        """Write the percentage of the component that is done."""
        self.say(Percent(percent=done))

    def note(self, text: str) -> None:
        """Write a line for the user."""
        self.say(Note(note=text))

    def say(self, result: EngineComponent | Failure | Percent | Note) -> None:
        """Write one answer."""
        self._answers.write(Answer(result=result).model_dump_json() + "\n")
        self._answers.flush()


def main() -> None:
    """Run jobs until stdin ends, also because the parent died; then exit at once, even in the middle of a job."""
    _die_with_parent()
    # Ctrl-C signals every process of the terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Output of libraries must not be read as an answer.
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, jobs), daemon=True).start()
    talk = Talk(answers)
    while True:
        talk.say(do(ComponentJob.model_validate_json(jobs.get()), talk))


def do(job: ComponentJob, report: Report | None = None) -> EngineComponent | Failure:
    """Build a component; return it, or the error that it raised."""
    try:
        with disk_errors(job.folder):
            return builder(job.backend, report).build(job)
    except SdrtError as error:
        return Failure(kind=type(error).__name__, message=error.message, hint=error.hint)


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent ends.

    A compiler may hold Python's global lock, so that the thread which reads stdin does not notice its end.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(lines: IO[str], jobs: queue.SimpleQueue[str]) -> None:
    for line in lines:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
