"""Return of freed memory to the system."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Return freed memory that the C library keeps to the system; does nothing without glibc.

    glibc keeps freed blocks of up to 32 MiB for later use (malloc(3), M_MMAP_THRESHOLD), and an engine's weights
    are hundreds of such blocks.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
