"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Have the C library give back what it keeps of freed memory, where it can be told to.

    glibc keeps freed blocks of up to 32 MiB to hand out again (malloc(3), M_MMAP_THRESHOLD), and an engine's weights
    are hundreds of such blocks.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
