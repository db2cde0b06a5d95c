"""Runs plans by TensorRT or TensorRT-RTX, whose Python modules share all the names used here."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdrt.libraries.cuda import Cuda
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.session import DeviceLoop, Session
from sdrt.runtime.backends.tensorrt_device import Device, check_architecture
from sdrt.runtime.backends.tensorrt_engine import REPEATED, TensorRtEngine
from sdrt.runtime.backends.tensorrt_kernels import KernelCache

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BackendName, EngineSet
    from sdrt.artefacts.manifest import ComponentName

_MODULES: dict[BackendName, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "trt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}


class TensorRtSession(Session):
    """The engines of one set on one GPU. They share a stream and the memory for activations.

    Args:
        engines: The opened, hence verified, set.
        trt: The tensorrt or tensorrt_rtx module.
        cuda: The CUDA runtime.
        cuda_graphs: Whether steps are replayed from a CUDA graph; without, the results are the same but slower.
        progress: Progress callback; receives warnings.

    Raises:
        BackendUnavailableError: The set was built for another GPU architecture, or TensorRT does not start.
    """

    def __init__(
        self, engines: EngineSet, trt: Any, cuda: Cuda, *, cuda_graphs: bool = True, progress: Progress = silent
    ) -> None:
        check_architecture(engines, cuda)
        self._device = Device(trt, cuda, progress)
        self._cuda_graphs = cuda_graphs
        self._loop: Any = None
        super().__init__(engines, partial(_open, engines, self._device, cuda_graphs, progress))

    def device_loop(self) -> DeviceLoop | None:
        """Return the loop over denoise_step; None if the set lacks it."""
        if self._loop is None and "denoise_step" in self.engines.manifest.components:
            from sdrt.runtime.backends.tensorrt_loop import TensorRtLoop

            engine = self.engine("denoise_step")
            if not isinstance(engine, TensorRtEngine):
                raise TypeError(type(engine))
            capture = self._cuda_graphs and not self._device.captures_itself
            self._loop = TensorRtLoop(engine, self._device, capture=capture)
        loop: DeviceLoop | None = self._loop
        return loop

    def replays(self, name: ComponentName) -> bool:
        """Return whether a component's runs are replayed from a CUDA graph, of a whole step or TensorRT-RTX's own.

        If TensorRT-RTX cannot capture an engine, it runs it without a graph and without a warning, so each is queried.
        """
        if not self._device.captures_itself:
            return self._cuda_graphs and name == "denoise_step"
        if not self._cuda_graphs or name not in REPEATED:
            return False
        engine = self.engine(name)
        return isinstance(engine, TensorRtEngine) and engine.replays

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes of the opened engines' weights, activations, inputs and outputs.

        ``latents`` and ``history`` are denoise_step's, before and after a step; ``schedule`` is the loop's table of
        rows; ``buffers`` are all other inputs and outputs.
        """
        engines = [engine for engine in self._opened.values() if isinstance(engine, TensorRtEngine)]
        activations = self._device.activations
        kept = {
            what: sum(engine.tensor_bytes(what, f"next_{what}") for engine in engines)
            for what in ("latents", "history")
        }
        parts = {
            "weights": sum(engine.weights_bytes for engine in engines),
            "activations": activations.size_bytes if activations else 0,
            **kept,
            "schedule": self._loop.buffer_bytes if self._loop else 0,
            "buffers": sum(engine.buffer_bytes for engine in engines) - sum(kept.values()),
        }
        return {**parts, "total": sum(parts.values())}

    def release(self, name: ComponentName) -> None:
        """Do nothing: on a GPU the engines share memory, and the loop's graph refers to them."""

    def close(self) -> None:
        """Wait for the device, and free everything."""
        if self._device.stream is not None:
            self._device.cuda.release("cudaStreamSynchronize", self._device.stream)
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        super().close()
        self._device.close()


def open_alone(engines: EngineSet, name: ComponentName, trt: Any, cuda: Cuda) -> TensorRtEngine:
    """Open one engine of a set, with a device of its own that is closed with it.

    Raises:
        SdrtError: As `TensorRtSession` and `TensorRtEngine` raise.
    """
    check_architecture(engines, cuda)
    device = Device(trt, cuda)
    try:
        return _open(engines, device, True, silent, name, owns_device=True)
    except BaseException:
        device.close()
        raise


def libraries(backend: BackendName) -> tuple[Any, Cuda]:
    """Import the backend's Python module, and open the CUDA runtime.

    Raises:
        BackendUnavailableError: A library, the driver or a GPU is missing.
    """
    module, extra = _MODULES[backend]
    return import_module(module), Cuda.open(extra)


def _open(
    engines: EngineSet,
    device: Device,
    cuda_graphs: bool,
    progress: Progress,
    name: ComponentName,
    *,
    owns_device: bool = False,
) -> TensorRtEngine:
    # Kernels are code: they are kept only in a store that nobody else can write to.
    keeps = device.captures_itself and engines.in_private_store
    kernels = KernelCache(engines, name, device.name(engines.manifest.backend), progress) if keeps else None
    return TensorRtEngine(name, engines, device, cuda_graphs, kernels=kernels, owns_device=owns_device)
