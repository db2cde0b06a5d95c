"""Unfinished files carry the id of their process, so that leftovers of killed processes can be removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

#: Prefix of unfinished files and folders, beside their final path ...
PART_PREFIX = ".part-"
#: ... and of folders that hold the replaced file or folder under its own name.
ASIDE_PREFIX = ".old-"


def owner_name() -> str:
    """Return what follows the prefix in names of this process's unfinished files: ``<pid>-<start time>-``."""
    return f"{os.getpid()}-{_started(os.getpid())}-"


def is_abandoned(name: str) -> bool:
    """Return whether the process that an unfinished file's name (without prefix) identifies is gone."""
    number, _, rest = name.partition("-")
    if not (number.isascii() and number.isdigit()):
        return False
    pid = int(number)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    # The pid may have been reused by a process that started later.
    return rest.partition("-")[0] != _started(pid)


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; 0 if the system does not report it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return fields[19]


@contextlib.contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Yield whether an exclusive lock on a file or folder was taken; it is held for the block."""
    try:
        # O_NONBLOCK: opening a pipe of that name would wait for its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove unfinished files of killed processes from a folder; move back what they had moved aside.

    Files of a live process on another machine or in another container, whose pid means nothing here, are still locked
    by it and stay, as do files that cannot be removed.
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            for prefix in (PART_PREFIX, ASIDE_PREFIX):
                if path.name.startswith(prefix) and is_abandoned(path.name.removeprefix(prefix)):
                    _sweep_one(path)


def _sweep_one(path: Path) -> None:
    with try_exclusive(path) as unused, contextlib.suppress(OSError):
        if not unused:
            return
        if path.name.startswith(ASIDE_PREFIX):
            _put_back(path)
        remove(path)


def _put_back(aside: Path) -> None:
    """Rename what was moved aside to its former path, unless its replacement is there."""
    for held in aside.iterdir():
        if not (aside.parent / held.name).exists():
            held.rename(aside.parent / held.name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its contents, except contents that cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
