"""The kernels that TensorRT-RTX compiles for the GPU at run time, kept beside their plan in the store.

A TensorRT-RTX plan holds no machine code: opening it compiles kernels for the GPU that is there, and a batch size that
is run for the first time compiles more (docs/decisions/0038).
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

#: In a set's folder; not of its manifest, so what is here is never carried to another machine.
FOLDER = "kernels"
# Nobody holds the lock for longer than it takes to read or write a file.
LOCK_TIMEOUT_S = 10.0


class KernelCache:
    """One component's kernels on one kind of GPU: taken from a sealed file, and put there again.

    Nothing depends on it but time: where the file cannot be read or written, that is said and kernels are compiled
    anew.

    Args:
        engines: The set, in a store that is this user's alone.
        name: The component.
        device: Names the library, its version and the GPU.
        progress: Told what went wrong.
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
        """Have the contexts that a configuration makes take the kernels that were read, and leave new ones here.

        Args:
            config: An IRuntimeConfig of TensorRT-RTX. The CUDA context must have been made.
        """
        self._cache = config.create_runtime_cache()
        # TensorRT-RTX holds what it is given against its version, the GPU and the driver.
        if self._known and not self._cache.deserialize(self._known):
            self._note(f"{self.path} is of another TensorRT-RTX, GPU or driver; kernels are compiled anew")
        if not config.set_runtime_cache(self._cache):
            self._note(f"TensorRT-RTX takes no cache of kernels; they are not kept in {self.path}")
            self._cache = None

    def keep(self) -> None:
        """Write what there is now, if it is not what was read.

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
        """Let go of TensorRT-RTX's cache, which every context that was made with it must be gone before."""
        self._cache = None

    def _file(self) -> SealedFile:
        file = SealedFile(self.path, self._note, subject=self._subject, timeout_s=LOCK_TIMEOUT_S)
        check_private([self.path.parent])
        return file
