"""No garbage collection while TensorRT works.

TensorRT calls its logger under a lock of its own. A collection that starts in such a call, in Python, and frees an
older builder, engine or logger has their destructors wait for that lock, in the thread that holds it: for ever.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing before the block ends. What counting references frees is freed as ever."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
