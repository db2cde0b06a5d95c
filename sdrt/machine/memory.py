"""Peak memory of this process, on Linux."""

from __future__ import annotations

import contextlib
from pathlib import Path

PROCESS = Path("/proc/self")


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, if the system can (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak_memory_bytes() -> int | None:
    """Return the largest resident set since the last reset in bytes; None if the system does not report it."""
    with contextlib.suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
