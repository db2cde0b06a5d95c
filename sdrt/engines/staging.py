"""Names of unfinished folders that tell whether the process that makes them still lives."""

from __future__ import annotations

import os
from pathlib import Path


def staging_name() -> str:
    """How the names of this process's unfinished folders begin: its number and when it started."""
    return f"{os.getpid()}-{_started(os.getpid())}-"


def is_abandoned(name: str) -> bool:
    """Whether the process that began a folder of this name is gone."""
    number, _, rest = name.partition("-")
    if not number.isdigit():
        return False
    pid = int(number)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # The number may have been given to another process since, which then started later.
    return rest.partition("-")[0] != _started(pid)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return fields[19]
