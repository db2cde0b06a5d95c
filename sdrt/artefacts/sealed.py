"""Caches of code that only this user's processes wrote: read and written under a lock, sealed by a digest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sdrt.artefacts.locks import exclusive
from sdrt.files import disk_errors, sha256_bytes, write_atomically
from sdrt.progress import silent

DIGEST_BYTES = 64


class SealedFile:
    """Bytes behind their SHA-256, in a folder of this user's: what is handed to a parser in C++ is what sdrt wrote.

    Args:
        path: The file; its folder is made when absent.
        note: Told when the file is not what it should be and goes.
        subject: What the bytes are of: a file sealed for another subject is not what it should be.
        timeout_s: How long to wait for another process that has the file.
    """

    def __init__(self, path: Path, note: Callable[[str], None], *, subject: str = "", timeout_s: float = 60.0) -> None:
        self.path = path
        self._note = note
        self._subject = subject.encode()
        self._timeout_s = timeout_s
        with disk_errors(path.parent):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from the file.

        Raises:
            TimeLimitError: Another process held it for too long.
            ResourceError: The lock cannot be written.
        """
        return exclusive(self.path.with_suffix(".lock"), str(self.path), self._timeout_s, silent)

    def read(self) -> bytes:
        """The bytes as they were written; none where there is no file, or one that is not sealed, which goes.

        Raises:
            ResourceError: They cannot be read.
        """
        with disk_errors(self.path, "read"):
            if not self.path.exists():
                return b""
            data = self.path.read_bytes()
            if self._seal(data[DIGEST_BYTES:]) != data[:DIGEST_BYTES]:
                self._note(f"{self.path} does not match its digest; it is made anew")
                self.path.unlink()
                return b""
        return data[DIGEST_BYTES:]

    def write(self, data: bytes) -> None:
        """Replace the bytes, whole or not at all.

        Raises:
            ResourceError: They cannot be written.
        """
        write_atomically(self.path, self._seal(data) + data)

    def _seal(self, data: bytes) -> bytes:
        return sha256_bytes(self._subject + data).encode()
