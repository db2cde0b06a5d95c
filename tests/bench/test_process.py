from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sdrt.bench.contender import Job
from sdrt.bench.process import Process
from sdrt.errors import EngineError


def start(tmp_path: Path) -> Process:
    """Start a process that answers without loading anything."""
    return Process(Job("ceiling", "fp32", 1), str(tmp_path))


def test_a_process_that_waits_ends_when_it_is_closed(tmp_path: Path) -> None:
    with start(tmp_path) as waiting:
        pass
    assert waiting._process.returncode == 0


def test_what_raises_ends_the_process_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start(tmp_path) as waiting:
        raise KeyboardInterrupt
    assert waiting._process.returncode == -9


def test_a_process_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = start(tmp_path)

    def wait(timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("worker", timeout or 0)

    really, killed = waiting._process.wait, waiting._process.kill

    def kill() -> None:
        killed()
        monkeypatch.setattr(waiting._process, "wait", really)

    monkeypatch.setattr(waiting._process, "wait", wait)
    monkeypatch.setattr(waiting._process, "kill", kill)
    waiting.close()
    assert waiting._process.returncode == -9


def test_what_a_process_said_last_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nobody fp32 ended with code 1: KeyError: 'nobody'"):
        Process(Job("nobody", "fp32", 1), str(tmp_path))


def test_a_killed_process_is_told_as_such(tmp_path: Path) -> None:
    with start(tmp_path) as dead:
        dead._process.kill()
        dead._process.wait()
        with pytest.raises(EngineError, match="ceiling fp32 was killed by signal 9"):
            dead.ask({"threads": 1})


def test_what_is_not_json_ends_it_with_a_reason(tmp_path: Path) -> None:
    with start(tmp_path) as confused:
        print("not JSON", file=confused._process.stdin, flush=True)
        with pytest.raises(EngineError, match="JSONDecodeError"):
            confused._receive()
