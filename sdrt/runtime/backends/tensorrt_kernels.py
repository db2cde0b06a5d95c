"""The kernels that TensorRT-RTX compiles for the GPU at run time, kept beside their plan in the store.

A TensorRT-RTX plan holds no machine code: opening it compiles kernels for the present GPU, and the first run of a batch
size compiles more (docs/decisions/0038).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdrt.artefacts.engine_set import check_private
from sdrt.artefacts.sealed import SealedFile
from sdrt.errors import ResourceError, TimeLimitError, TrustError
from sdrt.machine.gc_pause import gc_paused
from sdrt.progress import Progress

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.artefacts.manifest import ComponentName

#: In a set's folder, but not in its manifest: kernels are never copied to another machine.
FOLDER = "kernels"
# The lock is held only while a file is read or written.
LOCK_TIMEOUT_S = 10.0


class KernelCache:
    """One component's kernels for one kind of GPU, kept in a sealed file.

    Without the file only opening is slower: if it cannot be read or written, a note says so and kernels are compiled
    anew.

    Args:
        engines: The set, in a store that only this user can write to.
        name: Name of the component.
        device: Name of the library, its version and the GPU.
        progress: Progress callback; receives notes about failures.
    """

    def __init__(self, engines: EngineSet, name: ComponentName, device: str, progress: Progress) -> None:
        self.path = engines.path / FOLDER / f"{name}-{device}.cache"
        self._subject = f"{engines.digest} {name} {device}"
        self._note = progress.note
        self._cache: Any = None
        self._known = b""

    def read(self) -> None:
        """Read the file, if there is one.

        Raises:
            TrustError: Others can write to the folder.
        """
        try:
            file = self._file()
            with file.locked():
                self._known = file.read()
        except (ResourceError, TimeLimitError) as error:
            self._note(f"kernels are compiled anew: {error.message}")

    def give(self, config: Any) -> None:
        """Make the contexts of a configuration use the kernels that were read, and collect new ones.

        Args:
            config: An IRuntimeConfig of TensorRT-RTX. The CUDA context must exist.
        """
        self._cache = config.create_runtime_cache()
        # TensorRT-RTX checks the data for its version, the GPU and the driver.
        if self._known and not self._cache.deserialize(self._known):
            self._note(f"{self.path} is of another TensorRT-RTX, GPU or driver; kernels are compiled anew")
        if not config.set_runtime_cache(self._cache):
            self._note(f"TensorRT-RTX accepts no cache of kernels; they are not kept in {self.path}")
            self._cache = None

    def keep(self) -> None:
        """Write the kernels, if they differ from those that were read.

        Of processes that compile different kernels at the same time, the last to close keeps its own.
        """
        if self._cache is None:
            return
        with gc_paused():
            kernels = self._cache.serialize()
        data = b"" if kernels is None else bytes(kernels)
        if data in (b"", self._known):
            return
        try:
            file = self._file()
            with file.locked():
                file.write(data)
        except (ResourceError, TimeLimitError, TrustError) as error:
            self._note(f"kernels are not kept: {error.message}")
        else:
            self._known = data

    def release(self) -> None:
        """Release TensorRT-RTX's cache; contexts created with it must be destroyed before."""
        self._cache = None

    def _file(self) -> SealedFile:
        file = SealedFile(self.path, self._note, subject=self._subject, timeout_s=LOCK_TIMEOUT_S)
        check_private([self.path.parent])
        return file
