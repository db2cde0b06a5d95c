"""Ending on Ctrl-C or SIGTERM: the first asks, and all is cleared up on the way out; one that comes later insists."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_INTERRUPTED = 130
#: Signals that come closer together than this are one: timeout(1) and process managers send theirs twice.
GRACE_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM raises KeyboardInterrupt, and a later one ends the process at once.

    Python hears of a signal between two of its own operations only. What insists is therefore watched for by a thread
    of its own, so that it ends also a process that is deep in a library. What such an end leaves unfinished the next
    run sweeps. To be called in the main thread; signals that the process was started to ignore stay ignored.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        # Once only: clearing up is not to be interrupted half-way.
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None is of a program that Python runs in, and stays too.
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reading,), name="sdrt-interruption", daemon=True)
    # Where there is no room for a thread, there is none for the work either, whose error says more.
    with suppress(RuntimeError):
        watch.start()
    try:
        for number in before:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        if watch.is_alive():
            watch.join()
        os.close(reading)


def _watch(reading: int) -> None:
    """End the process when a signal comes ``GRACE_S`` or more after the first; until no more signals can come."""
    first: float | None = None
    while data := os.read(reading, 1):
        if data[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is not None and now - first >= GRACE_S:
            os.write(2, b"sdrt: interrupted, at once\n")
            os._exit(EXIT_INTERRUPTED)
        first = now if first is None else first
