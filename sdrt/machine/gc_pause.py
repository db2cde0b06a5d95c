"""Pauses the cyclic garbage collector while TensorRT works, which could otherwise deadlock.

TensorRT calls its logger while holding a lock of its own. If a collection starts in that call, in Python, and frees an
older builder, engine or logger, its destructor waits for that lock in the very thread that holds it. If it starts in
another thread, it waits for that lock while holding the interpreter's lock, which the logger needs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

# Reentrant: a finaliser that runs while it is held may enter this module again.
_lock = threading.RLock()
_inside = 0
_was_on = False


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector for the block; blocks may nest, and run in several threads at once.

    The first block to begin pauses it for all threads; the last to end restores its previous state. Reference counting
    still frees objects.
    """
    _pause()
    try:
        yield
    finally:
        _resume()


def _pause() -> None:
    global _inside, _was_on
    with _lock:
        if _inside == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _inside += 1


def _resume() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0 and _was_on:
            gc.enable()
