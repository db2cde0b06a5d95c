"""Lock files that name their holder, and leases on folders in use."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sdrt.errors import EngineError, TimeLimitError
from sdrt.files import disk_errors, unreadable
from sdrt.progress import Progress
from sdrt.unfinished import is_abandoned, owner_name, try_exclusive

__all__ = ["Lease", "drop_dead_holders", "exclusive", "try_exclusive"]


@contextlib.contextmanager
def exclusive(path: Path, what: str, timeout_s: float, progress: Progress) -> Iterator[None]:
    """Hold a lock file for the block; note once if another process has to be waited for.

    Args:
        path: The lock file, which is not removed; its folder must exist.
        what: Name of the locked object in notes and errors.
        timeout_s: Seconds to wait.
        progress: Progress callback, which gets the note.

    Raises:
        TimeLimitError: It did not become free; the message names the process that holds it.
        ResourceError: The lock file cannot be written.
    """
    holder = path.with_suffix(".holder")
    lock = FileLock(path)
    with disk_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"waiting for {_process_named_in(holder)}, which has locked {what}")
            _wait(lock, holder, what, timeout_s)
        try:
            holder.write_text(owner_name())
        except BaseException:
            lock.release()
            raise
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _wait(lock: FileLock, holder: Path, what: str, timeout_s: float) -> None:
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        hint = "wait for that process or end it, which releases the lock"
        message = f"{_process_named_in(holder)} has held the lock on {what} for {timeout_s:g} s"
        raise TimeLimitError(message, hint=hint) from error


def _process_named_in(holder: Path) -> str:
    try:
        return f"process {int(holder.read_text().partition('-')[0])}"
    except (OSError, ValueError):
        return "another process"


def drop_dead_holders(folder: Path) -> None:
    """Remove the holder files of killed processes from a folder of locks; the system has released the locks."""
    for holder in folder.glob("*.holder"):
        with contextlib.suppress(OSError, ValueError):
            if not is_abandoned(holder.read_text()):
                continue
            # Under the lock, so that the file of a new holder is not removed by mistake.
            with contextlib.suppress(Timeout), FileLock(holder.with_suffix(".lock"), timeout=0):
                holder.unlink(missing_ok=True)


class Lease:
    """A shared lock on a folder in use: `try_exclusive` fails on it in every process until the lease is released.

    Args:
        folder: The folder, which must exist.

    Raises:
        EngineError: The folder does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._handle = -1
        try:
            self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise unreadable(folder, error, EngineError, hint="give an engine set's folder") from error
        # Some network file systems refuse to lock folders; there a set runs, but gc may remove it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def release(self) -> None:
        """End the lease."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.release()
