"""No garbage collection while TensorRT works.

TensorRT calls its logger under a lock of its own. A collection that starts in such a call, in Python, and frees an
older builder, engine or logger has their destructors wait for that lock, in the thread that holds it: for ever. One
that starts in another thread waits for that lock too, with the interpreter's lock that the logger needs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

# Reentrant: a collection that starts while it is held may end in here again, through a finaliser.
_lock = threading.RLock()
_inside = 0
_was_on = False


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector for the block; blocks may nest, and run in several threads at once.

    The first block to begin pauses it, for all threads; the last to end leaves it on or off as the first found it.
    Reference counting goes on freeing.
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
