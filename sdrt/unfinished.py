"""What is being made and is not whole yet: named for the process that makes it, so that what it leaves can be swept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

#: How the names of unfinished files and folders begin, beside what they are to become ...
PART_PREFIX = ".part-"
#: ... and of folders that hold what is being replaced, under its own name.
ASIDE_PREFIX = ".old-"


def owner_name() -> str:
    """How the names of this process's unfinished things go on: its number, when it started, and a dash at the end."""
    return f"{os.getpid()}-{_started(os.getpid())}-"


def is_abandoned(name: str) -> bool:
    """Whether the process that began a thing of this name is gone."""
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
    # The number may have been given to another process since, which then started later.
    return rest.partition("-")[0] != _started(pid)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return fields[19]


@contextlib.contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Whether nobody has a file or folder in use, and while the block runs nobody will."""
    try:
        # A pipe of that name would wait for its other end.
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
    """Remove from a folder what processes that were killed left unfinished there; what they moved aside comes back.

    A process of another machine or container, whose number means nothing here, still holds a lock on what is its own.
    What cannot be removed stays.
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
    """Rename what was moved aside to where it stood, unless what was to replace it is there."""
    for held in aside.iterdir():
        if not (aside.parent / held.name).exists():
            held.rename(aside.parent / held.name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; what cannot be removed of a folder stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
