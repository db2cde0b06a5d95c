"""Timings of TensorRT's kernels, kept per device: later builds are faster and choose the same kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.sealed import SealedFile

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


class TimingCache:
    """The timing cache of a device: a file, read and written under a lock, with a digest.

    Args:
        folder: Folder of the files; created if missing.
        device: Name of the device and of everything else that the timings depend on.
        note: Called with a line if the file is damaged or of another device and is made anew.
    """

    def __init__(self, folder: Path, device: str, note: Callable[[str], None]) -> None:
        self.path = folder / f"{device}.cache"
        self._note = note
        self._file = SealedFile(self.path, note)

    def give(self, config: rtx.IBuilderConfig) -> None:
        """Load the timings into a build's configuration.

        Raises:
            TimeLimitError: Another process held the file for too long.
        """
        with self._file.locked():
            data = self._file.read()
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            self._note(f"{self.path} is of another TensorRT or device; it is created again")
            if (empty := config.create_timing_cache(b"")) is not None:
                config.set_timing_cache(empty, False)

    def keep(self, config: rtx.IBuilderConfig) -> None:
        """Merge a build's timings into the file.

        Raises:
            TimeLimitError: Another process held the file for too long.
            ResourceError: The file cannot be written.
        """
        measured = config.get_timing_cache()
        if measured is None:
            return
        with self._file.locked():
            others = config.create_timing_cache(self._file.read())
            if others is not None:
                measured.combine(others, False)
            self._file.write(bytes(measured.serialize()))
