"""The process that compiles: reads jobs from stdin, one JSON line each, and answers each with one on stdout.

Compilers may crash, take all memory or never return. In a process of their own they can be ended at any moment, and
what they take is given back.
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

# prctl(2): the signal that this process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1


class Failure(Record):
    """An error of ours on its way back."""

    kind: str
    message: str
    hint: str


class Percent(Record):
    """How far the job is."""

    percent: int


class Note(Record):
    """One line for the user."""

    note: str


class Answer(Record):
    """What became of a job, or on the way there."""

    result: EngineComponent | Failure | Percent | Note


class Talk:
    """Says how far a job is, to the parent.

    Args:
        answers: Where answers go.
    """

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers

    def percent(self, done: int) -> None:
        """Say that so much of the component is done, in all."""
        self.say(Percent(percent=done))

    def note(self, text: str) -> None:
        """Say one line."""
        self.say(Note(note=text))

    def say(self, result: EngineComponent | Failure | Percent | Note) -> None:
        """Write one answer."""
        self._answers.write(Answer(result=result).model_dump_json() + "\n")
        self._answers.flush()


def main() -> None:
    """Do jobs until stdin ends, which it does also when the parent dies; then leave at once, whatever is under way."""
    _die_with_parent()
    # Ctrl-C reaches every process of the terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not be taken for an answer.
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, jobs), daemon=True).start()
    talk = Talk(answers)
    while True:
        talk.say(do(ComponentJob.model_validate_json(jobs.get()), talk))


def do(job: ComponentJob, report: Report | None = None) -> EngineComponent | Failure:
    """Build one component."""
    try:
        with disk_errors(job.folder):
            return builder(job.backend, report).build(job)
    except SdrtError as error:
        return Failure(kind=type(error).__name__, message=error.message, hint=error.hint)


def _die_with_parent() -> None:
    """Have the system end this process with its parent, where it can: a library may hold Python's lock as it compiles.

    While it does, nobody reads that stdin has ended.
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
