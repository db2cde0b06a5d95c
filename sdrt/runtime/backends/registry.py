"""The backends, and which of them can run on this machine; imports no backend's library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.install_lines import extra_line
from sdrt.machine import nvidia
from sdrt.machine.packages import installed_version

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BackendName
    from sdrt.artefacts.tuned import TuneRecord


@dataclass(frozen=True)
class _Backend:
    """Module and class of a backend's engine, and whether it needs an NVIDIA GPU."""

    module: str
    engine: str
    needs_gpu: bool


_BACKENDS: dict[BackendName, _Backend] = {
    "tensorrt": _Backend("sdrt.runtime.backends.tensorrt", "TensorRtEngine", needs_gpu=True),
    "tensorrt-rtx": _Backend("sdrt.runtime.backends.tensorrt", "TensorRtEngine", needs_gpu=True),
    "openvino": _Backend("sdrt.runtime.backends.openvino", "OpenVinoEngine", needs_gpu=False),
    "onnxruntime": _Backend("sdrt.runtime.backends.onnxruntime", "OnnxRuntimeEngine", needs_gpu=False),
}
# In the order in which "auto" tries them, the fastest first.
BACKENDS: tuple[BackendName, ...] = tuple(_BACKENDS)
GPU_BACKENDS: tuple[BackendName, ...] = tuple(name for name, entry in _BACKENDS.items() if entry.needs_gpu)


def available(backend: str) -> None:
    """Raise BackendUnavailableError unless a backend can run here.

    Only packages and the driver are checked; no backend's library is imported.

    Raises:
        UsageError: There is no backend of this name.
        BackendUnavailableError: Its package, NVIDIA's driver or a GPU is missing, or it does not support the GPU.
    """
    entry = find_backend(backend)
    if entry.needs_gpu:
        _check_nvidia_driver(backend)
    if backend == "tensorrt-rtx":
        _check_rtx_gpu()
    installed_version(backend)
    if entry.needs_gpu:
        installed_version("cuda-bindings", backend)


def choose_backend(record: TuneRecord | None = None) -> tuple[BackendName, str]:
    """Return the backend of ``--backend auto``: the tuned one, or else the first of `BACKENDS` that can run.

    Args:
        record: Result of ``sdrt tune`` for the bundle on this machine.

    Returns:
        The backend's name, and the reason in one line.

    Raises:
        BackendUnavailableError: No backend can run.
    """
    if record is not None and record.best is not None:
        available(record.best.backend)
        return record.best.backend, record.reason
    refused = []
    for backend in BACKENDS:
        try:
            available(backend)
        except BackendUnavailableError as error:
            refused.append(error.message)
            continue
        because = f"{backend} {installed_version(backend)} is the fastest that can run here"
        return backend, "; ".join([because, *refused])
    raise BackendUnavailableError("no backend can run here: " + "; ".join(refused), hint=extra_line("cpu"))


def find_backend(backend: str) -> _Backend:
    """Return the entry of a backend.

    Raises:
        UsageError: There is no backend of this name.
    """
    for name, entry in _BACKENDS.items():
        if name == backend:
            return entry
    raise UsageError(f"there is no backend {backend!r}", hint=f"choose from {', '.join(BACKENDS)}")


def _check_nvidia_driver(backend: str) -> None:
    """Raise BackendUnavailableError unless NVIDIA's driver is installed and finds a GPU."""
    hint = "install NVIDIA's driver, or choose openvino or onnxruntime"
    try:
        gpus = nvidia.driver().gpus
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            f"{backend} needs an NVIDIA driver and GPU: {error.message}", hint=hint
        ) from error
    if not gpus:
        raise BackendUnavailableError(f"{backend} needs an NVIDIA GPU; the driver finds none", hint=hint)


def _check_rtx_gpu() -> None:
    """Raise BackendUnavailableError unless TensorRT-RTX supports the first GPU's architecture."""
    gpu = nvidia.driver().gpus[0]
    if gpu.architecture not in nvidia.RTX_ARCHITECTURES:
        kinds = ", ".join(nvidia.RTX_ARCHITECTURES)
        message = f"tensorrt-rtx runs on {kinds}; {gpu.name} is {gpu.architecture}"
        raise BackendUnavailableError(message, hint=f"choose tensorrt, which runs on it: {extra_line('trt')}")
