"""The backends, and which of them can run here; imports no backend's library."""

from __future__ import annotations

import ctypes
import sys
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
    """Where a backend's engine class is, and whether it needs an NVIDIA GPU."""

    module: str
    engine: str
    needs_gpu: bool


_BACKENDS: dict[BackendName, _Backend] = {
    "tensorrt": _Backend("sdrt.runtime.backends.tensorrt", "TensorRtEngine", needs_gpu=True),
    "tensorrt-rtx": _Backend("sdrt.runtime.backends.tensorrt", "TensorRtEngine", needs_gpu=True),
    "openvino": _Backend("sdrt.runtime.backends.openvino", "OpenVinoEngine", needs_gpu=False),
    "onnxruntime": _Backend("sdrt.runtime.backends.onnxruntime", "OnnxRuntimeEngine", needs_gpu=False),
}
# By speed, the fastest first: the order in which "auto" tries them.
BACKENDS: tuple[BackendName, ...] = tuple(_BACKENDS)
GPU_BACKENDS: tuple[BackendName, ...] = tuple(name for name, entry in _BACKENDS.items() if entry.needs_gpu)


def available(backend: str) -> None:
    """Hold that a backend can run here. Looks for packages and the driver; imports no backend's library.

    Raises:
        UsageError: There is no backend of this name.
        BackendUnavailableError: Its package or NVIDIA's driver is missing, or it does not run on the GPU that is here;
            the hint says what to do.
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
    """What ``--backend auto`` means here: what was tuned, else the first of `BACKENDS` that can run.

    Args:
        record: What ``sdrt tune`` found for the bundle on this machine.

    Returns:
        Its name, and why in one line.

    Raises:
        BackendUnavailableError: None can.
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
    """Hold that NVIDIA's driver is installed and sees a GPU (cuInit and cuDeviceGetCount of the driver API)."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    hint = "install NVIDIA's driver, or choose openvino or onnxruntime"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise BackendUnavailableError(
            f"{backend} needs an NVIDIA driver, and {library} is missing", hint=hint
        ) from error
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        raise BackendUnavailableError(f"{backend} needs an NVIDIA GPU; the driver found none ({status})", hint=hint)


def _check_rtx_gpu() -> None:
    """Raise a BackendUnavailableError unless the GPU is of an architecture that TensorRT-RTX runs on."""
    gpu = nvidia.driver().gpus[0]
    if gpu.architecture not in nvidia.RTX_ARCHITECTURES:
        kinds = ", ".join(nvidia.RTX_ARCHITECTURES)
        message = f"tensorrt-rtx runs on {kinds}; {gpu.name} is {gpu.architecture}"
        raise BackendUnavailableError(message, hint=f"choose tensorrt, which runs on it: {extra_line('trt')}")
