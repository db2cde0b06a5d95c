"""The process that compiles: reads jobs from stdin, one JSON line each, and answers each with one on stdout.

Compilers may crash, take all memory or never return. In a process of their own they can be ended at any moment, and
what they take is given back.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import IO

from sdrt.bundle import Record
from sdrt.engines.builders import builder
from sdrt.engines.builders.base import ComponentJob
from sdrt.engines.engine_set import EngineComponent
from sdrt.errors import SdrtError


class Failure(Record):
    """An error of ours on its way back."""

    kind: str
    message: str
    hint: str


class Answer(Record):
    """What became of a job."""

    result: EngineComponent | Failure


def main() -> None:
    """Do jobs until stdin ends, which it does also when the parent dies; then leave at once, whatever is under way."""
    # Ctrl-C reaches every process of the terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not be taken for an answer.
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, jobs), daemon=True).start()
    while True:
        answers.write(do(ComponentJob.model_validate_json(jobs.get())).model_dump_json() + "\n")
        answers.flush()


def do(job: ComponentJob) -> Answer:
    """Build one component."""
    try:
        return Answer(result=builder(job.backend).build(job))
    except SdrtError as error:
        return Answer(result=Failure(kind=type(error).__name__, message=error.message, hint=error.hint))


def _read(lines: IO[str], jobs: queue.SimpleQueue[str]) -> None:
    for line in lines:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
