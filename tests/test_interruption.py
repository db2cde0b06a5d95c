"""Ctrl-C and SIGTERM: the first stops cleanly, simultaneous ones add nothing, and a later one exits at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdrt.interruption import EXIT_INTERRUPTED, interruptible

#: Prints when it works and when it cleans up, then continues on a line of input; with ``deep`` it waits in a library
#: that Python cannot interrupt.
SCRIPT = """
import hashlib, sys, time
from sdrt import interruption
interruption.GRACE_S = float(sys.argv[1])
with interruption.interruptible():
    try:
        print("works", flush=True)
        time.sleep(60)
    finally:
        print("clears up", flush=True)
        if sys.argv[2] == "deep":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
        sys.stdin.readline()
        print("is clear", flush=True)
"""


@contextmanager
def started(grace_s: float, how: str) -> Iterator[subprocess.Popen[str]]:
    """Start the script and wait until it works."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(grace_s), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        # Background jobs of a shell without job control ignore it, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_come_together_are_one(number: signal.Signals) -> None:
    with started(3600.0, "shallow") as process:
        process.send_signal(number)
        assert says(process) == "clears up"
        for again in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(again)
        out, err = process.communicate("go on\n")
    assert out == "is clear\n"
    assert "KeyboardInterrupt" in err
    assert process.returncode != EXIT_INTERRUPTED


@pytest.mark.parametrize("how", ["shallow", "deep"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_later_signal_ends_at_once(number: signal.Signals, how: str) -> None:
    with started(0.0, how) as process:
        process.send_signal(number)
        assert says(process) == "clears up"
        process.send_signal(number)
        # Its stdin stays open, so that it does not continue by itself.
        process.wait()
        out, err = process.communicate()
    assert (process.returncode, out, err) == (EXIT_INTERRUPTED, "", "sdrt: interrupted, at once\n")


def test_what_was_set_before_comes_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with interruptible():
        assert threading.active_count() == threads + 1
        assert signal.getsignal(signal.SIGTERM) not in handlers
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert threading.active_count() == threads


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
