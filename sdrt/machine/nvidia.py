"""NVIDIA's driver and its GPUs, as the CUDA driver API reports them; needs no package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sdrt.errors import BackendUnavailableError

#: GPU architectures that TensorRT-RTX 1.7 compiles for and runs on (ComputeCapability of its API).
RtxArchitecture = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]
RTX_ARCHITECTURES: tuple[RtxArchitecture, ...] = get_args(RtxArchitecture)
# CUdevice_attribute of the CUDA driver API.
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
# CUDA_ERROR_NO_DEVICE of the CUDA driver API.
NO_DEVICE = 100
NAME_BYTES = 256
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
#: Names the loaded driver, on Linux.
VERSION_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``architecture`` is its compute capability, such as "sm86"."""

    name: str
    architecture: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver: its version, the newest CUDA version it supports, and its GPUs."""

    version: str
    cuda: str
    gpus: tuple[Gpu, ...]


def driver() -> Driver:
    """Return the driver and its GPUs, of which there may be none.

    Raises:
        BackendUnavailableError: The driver is missing, does not start, or reports at its start that there is no GPU.
    """
    hint = "install NVIDIA's driver"
    try:
        api = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise BackendUnavailableError(f"there is no NVIDIA driver: {DRIVER_LIBRARY} is missing", hint=hint) from error
    status = api.cuInit(0)
    if status == NO_DEVICE:
        raise BackendUnavailableError(f"NVIDIA's driver finds no GPU (CUresult {status})", hint=hint)
    if status:
        raise BackendUnavailableError(f"NVIDIA's driver does not start (CUresult {status})", hint=hint)
    cuda, count = ctypes.c_int(0), ctypes.c_int(0)
    api.cuDriverGetVersion(ctypes.byref(cuda))
    api.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(api, index) for index in range(count.value))
    return Driver(driver_version(), f"{cuda.value // 1000}.{cuda.value % 1000 // 10}", gpus)


def driver_version(file: Path = VERSION_FILE) -> str:
    """Return the loaded driver's version, such as "580.65.06"; "unknown" if the system does not report it."""
    try:
        words = file.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "unknown")


def _gpu(api: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name, memory = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_size_t(0)
    api.cuDeviceGet(ctypes.byref(device), index)
    api.cuDeviceGetName(name, NAME_BYTES, device)
    api.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    api.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    api.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", memory.value)
