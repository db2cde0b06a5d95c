"""Runs a compiled blob by OpenVINO on the CPU."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdrt.arrays import Array
from sdrt.errors import BackendUnavailableError, EngineError
from sdrt.libraries.errors import library_error
from sdrt.libraries.openvino import core, cpu_config, inference_precision, load_library
from sdrt.runtime.backends.base import Engine

if TYPE_CHECKING:
    from openvino import InferRequest

    from sdrt.artefacts.engine_set import EngineComponent
    from sdrt.artefacts.manifest import ComponentName

#: Number of input shapes that an engine remembers to have run. Running a forgotten one again only rereads the weights.
REMEMBERED_SHAPES = 64


class MappedBlob:
    """A memory-mapped blob, whose pages can be released while it is in use.

    In the first run of a shape OpenVINO copies each weight into the layout that its matrix product needs, and does not
    read most of them again. Releasing pages during that run avoids holding the whole file in memory beside the copies.
    A released page is read again when it is accessed.

    Args:
        path: The blob.
    """

    #: Seconds between two releases; a run that copies 1.7 GB takes some seconds.
    EVERY_S = 0.05

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        # OpenVINO accepts only writable arrays, though it writes to none: this one is marked writable.
        address = np.frombuffer(self._map, dtype=np.uint8).ctypes.data
        self.array: Array = np.ctypeslib.as_array((ctypes.c_uint8 * len(self._map)).from_address(address))

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Release the pages repeatedly during the block, and once after it."""
        done = threading.Event()

        def give_back() -> None:
            while not done.wait(self.EVERY_S):
                self._map.madvise(mmap.MADV_DONTNEED)

        thread = threading.Thread(target=give_back, name="blob", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._map.madvise(mmap.MADV_DONTNEED)


class OpenVinoEngine(Engine):
    """One OpenVINO request over one imported blob.

    Args:
        folder: The engine set's folder, verified.
        threads: Threads of the one stream.

    Raises:
        EngineError: The blob does not open.
        BackendUnavailableError: OpenVINO would compute in another precision.
    """

    def __init__(self, name: ComponentName, spec: EngineComponent, folder: Path, threads: int) -> None:
        openvino = load_library()
        super().__init__(name, spec)
        path = folder / spec.file
        # Set before the blob: attributes are freed in this order, and the request must be freed first.
        self._request: InferRequest | None = None
        # OpenVINO reads weights from it as long as the request lives, but holds no reference to it.
        self._blob: MappedBlob | None = MappedBlob(path)
        self._copied_for: set[tuple[tuple[int, ...], ...]] = set()
        try:
            tensor = openvino.Tensor(self._blob.array, shared_memory=True)
            with self._blob.given_back():
                compiled = core().import_model(tensor, "CPU", cpu_config(spec.precision, threads))
        except (RuntimeError, MemoryError) as error:
            raise library_error(f"openvino cannot open {path}", error) from error
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        wanted = inference_precision(spec.precision)
        if precision != wanted:
            message = f"openvino would run {name} in {precision}, not {wanted}"
            raise BackendUnavailableError(message, hint="build it again here")
        self._request = compiled.create_infer_request()
        self._outputs = [output.name for output in spec.outputs]

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the request on the arrays in place, and return copies of its outputs."""
        if self._request is None or self._blob is None:
            raise EngineError(f"{self.name} is closed", hint="open it again")
        shapes = tuple(array.shape for array in feeds.values())
        if len(self._copied_for) >= REMEMBERED_SHAPES:
            self._copied_for.clear()
        try:
            with nullcontext() if shapes in self._copied_for else self._blob.given_back():
                # Inputs are read in place; outputs are copied, since the next run overwrites them.
                outputs = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        except (RuntimeError, MemoryError) as error:
            raise library_error(f"{self.name} failed", error) from error
        self._copied_for.add(shapes)
        return {name: outputs[name] for name in self._outputs}

    def release(self) -> None:
        """Release the request and the blob."""
        self._request = None
        self._blob = None
