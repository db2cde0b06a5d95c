"""What TensorRT measured of its kernels, kept per device: builds are quicker, and choose the same kernels again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdrt.engines.locks import exclusive
from sdrt.files import disk_errors, sha256_bytes, write_atomically
from sdrt.progress import silent

LOCK_TIMEOUT_S = 60.0
DIGEST_BYTES = 64


class TimingCache:
    """One device's file, read and written under a lock, sealed by a digest.

    Args:
        folder: Where the files are; made when absent.
        device: Names the device and everything else that the measurements depend on.
        note: Told when the file is not what it should be and is made anew.
    """

    def __init__(self, folder: Path, device: str, note: Callable[[str], None]) -> None:
        self.path = folder / f"{device}.cache"
        self._note = note
        with disk_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def give(self, config: Any) -> None:
        """Let a build start from what is known.

        Raises:
            TimeLimitError: Another process held the file for too long.
        """
        with self._locked():
            data = self._read()
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            self._note(f"{self.path} is of another TensorRT or device; it is made anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Add what a build measured to what others have put there meanwhile.

        Raises:
            TimeLimitError: Another process held the file for too long.
            ResourceError: It cannot be written.
        """
        measured = config.get_timing_cache()
        if measured is None:
            return
        with self._locked():
            others = config.create_timing_cache(self._read())
            if others is not None:
                measured.combine(others, False)
            data = bytes(measured.serialize())
            write_atomically(self.path, sha256_bytes(data).encode() + data)

    def _locked(self) -> Any:
        return exclusive(self.path.with_suffix(".lock"), str(self.path), LOCK_TIMEOUT_S, silent)

    def _read(self) -> bytes:
        """The sealed bytes, or none: a parser in C++ sees only what a build of ours wrote."""
        if not self.path.exists():
            return b""
        data = self.path.read_bytes()
        if sha256_bytes(data[DIGEST_BYTES:]).encode() != data[:DIGEST_BYTES]:
            self._note(f"{self.path} does not match its digest; it is made anew")
            self.path.unlink()
            return b""
        return data[DIGEST_BYTES:]
