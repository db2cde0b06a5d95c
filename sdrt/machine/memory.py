"""How much memory this process has held at most, on Linux."""

from __future__ import annotations

import contextlib
from pathlib import Path

PROCESS = Path("/proc/self")


def reset_peak_memory() -> None:
    """Start measuring anew, where the system can (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak_memory_bytes() -> int | None:
    """The largest resident set since the last reset; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
