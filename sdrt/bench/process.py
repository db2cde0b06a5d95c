"""The process of a contender, seen from the benchmark that starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from sdrt.bench.contender import Job, Ran, Work
from sdrt.errors import EngineError
from sdrt.files import temporary_file

CLOSE_TIMEOUT_S = 20
#: Variables that keep libraries off the network and from starting threads beyond the given number.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


class Process:
    """Starts a contender and sends it work. Close it, or use it as a context manager.

    Args:
        job: Contender to run.
        cache: Folder of the compilers' caches, shared between processes.

    Attributes:
        started_at: Start of the process on the system's monotonic clock, which its answers use too.
        loaded: Times at which libraries were imported and the model was loaded, on the same clock.

    Raises:
        EngineError: The contender does not load; the message is the last line of its stderr.
        ResourceError: There is no space for its stderr.
    """

    def __init__(self, job: Job, cache: str) -> None:
        self.job = job
        self._stderr = temporary_file()  # closed in close()
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "OMP_NUM_THREADS": str(job.threads),
            "TORCHINDUCTOR_CACHE_DIR": cache,
        }
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sdrt.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
        )
        try:
            self._send(asdict(job))
            self.loaded: Mapping[str, float] = {} if job.kind == "ceiling" else self._receive()
        except BaseException:
            self.close()
            raise

    def run(self, work: Work) -> Ran:
        """Draw one batch.

        Raises:
            EngineError: The process ended; the message is the last line of its stderr.
        """
        return Ran(**self.ask(asdict(work)))

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send one question and return the answer.

        Raises:
            EngineError: The process ended; the message is the last line of its stderr.
        """
        self._send(question)
        return self._receive()

    def close(self) -> None:
        """End the process, by force after `CLOSE_TIMEOUT_S`."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe_in.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe_out.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # Its current work is no longer needed.
            self._process.kill()
        self.close()

    @property
    def _pipe_in(self) -> Any:
        return self._process.stdin

    @property
    def _pipe_out(self) -> Any:
        return self._process.stdout

    def _send(self, value: Mapping[str, Any]) -> None:
        try:
            self._pipe_in.write(json.dumps(value) + "\n")
            self._pipe_in.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _receive(self) -> dict[str, Any]:
        line = self._pipe_out.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> EngineError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        said = f": {lines[-1][:300]}" if lines else ""
        return EngineError(f"{self.job.kind} {self.job.precision} {reason}{said}", hint="run it by itself to see more")
