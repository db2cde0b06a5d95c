"""Ctrl-C and SIGTERM: the first signal stops cleanly; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_INTERRUPTED = 130
#: Signals closer together than this count as one: timeout(1) and process managers send theirs twice.
GRACE_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first SIGINT or SIGTERM; end the process at once on a later one.

    Python handles signals only between its own operations, so a thread watches for the later signal, which then ends
    the process even inside a library call. The next run removes unfinished files. Call it in the main thread; signals
    that were ignored when the process started stay ignored.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        # Once only, so that cleaning up is not interrupted.
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None means a handler that was not installed from Python; it stays too.
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reading,), name="sdrt-interruption", daemon=True)
    # If no thread can start, the work will fail too, with an error that says more.
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
    """End the process on a signal ``GRACE_S`` or more after the first; return when the pipe is closed."""
    first: float | None = None
    while data := os.read(reading, 1):
        if data[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is not None and now - first >= GRACE_S:
            os.write(2, b"sdrt: interrupted, at once\n")
            os._exit(EXIT_INTERRUPTED)
        first = now if first is None else first
