"""What TensorRT measured of its kernels, kept per device: builds are quicker, and choose the same kernels again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.sealed import SealedFile

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


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
        self._file = SealedFile(self.path, note)

    def give(self, config: rtx.IBuilderConfig) -> None:
        """Let a build start from what is known.

        Raises:
            TimeLimitError: Another process held the file for too long.
        """
        with self._file.locked():
            data = self._file.read()
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            self._note(f"{self.path} is of another TensorRT or device; it is made anew")
            if (empty := config.create_timing_cache(b"")) is not None:
                config.set_timing_cache(empty, False)

    def keep(self, config: rtx.IBuilderConfig) -> None:
        """Add what a build measured to what others have put there meanwhile.

        Raises:
            TimeLimitError: Another process held the file for too long.
            ResourceError: It cannot be written.
        """
        measured = config.get_timing_cache()
        if measured is None:
            return
        with self._file.locked():
            others = config.create_timing_cache(self._file.read())
            if others is not None:
                measured.combine(others, False)
            self._file.write(bytes(measured.serialize()))
