"""Private caches of compiled code, sealed by a digest and read and written under a lock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sdrt.artefacts.locks import exclusive
from sdrt.files import disk_errors, sha256_bytes, write_atomically
from sdrt.progress import silent

DIGEST_BYTES = 64


class SealedFile:
    """A private file of bytes preceded by their SHA-256, so that C++ parsers get only bytes that sdrt wrote.

    Args:
        path: The file; its folder is created if absent.
        note: Gets a message when the file does not match its digest and is removed.
        subject: Name that is hashed with the bytes; a file sealed for another subject does not match.
        timeout_s: Seconds to wait for another process that has locked the file.
    """

    def __init__(self, path: Path, note: Callable[[str], None], *, subject: str = "", timeout_s: float = 60.0) -> None:
        self.path = path
        self._note = note
        self._subject = subject.encode()
        self._timeout_s = timeout_s
        with disk_errors(path.parent):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the file against other processes for the block.

        Raises:
            TimeLimitError: Another process held the lock for too long.
            ResourceError: The lock cannot be written.
        """
        return exclusive(self.path.with_suffix(".lock"), str(self.path), self._timeout_s, silent)

    def read(self) -> bytes:
        """Read the bytes; empty if there is no file, or if it does not match its digest, in which case it is removed.

        Raises:
            ResourceError: The file cannot be read.
        """
        with disk_errors(self.path, "read"):
            if not self.path.exists():
                return b""
            data = self.path.read_bytes()
            if self._seal(data[DIGEST_BYTES:]) != data[:DIGEST_BYTES]:
                self._note(f"{self.path} does not match its digest; it is created again")
                self.path.unlink()
                return b""
        return data[DIGEST_BYTES:]

    def write(self, data: bytes) -> None:
        """Replace the bytes atomically.

        Raises:
            ResourceError: The file cannot be written.
        """
        write_atomically(self.path, self._seal(data) + data)

    def _seal(self, data: bytes) -> bytes:
        return sha256_bytes(self._subject + data).encode()
