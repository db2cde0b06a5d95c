"""What NVIDIA's driver says of itself and its GPUs, by the driver API alone: it needs no package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sdrt.errors import BackendUnavailableError

#: What TensorRT-RTX 1.7 compiles for; it runs on nothing else (ComputeCapability of its API).
RtxArchitecture = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]
RTX_ARCHITECTURES: tuple[RtxArchitecture, ...] = get_args(RtxArchitecture)
# CUdevice_attribute of the CUDA driver API.
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
NAME_BYTES = 256
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
#: Where Linux says which driver is loaded.
VERSION_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``architecture`` is as "sm86"."""

    name: str
    architecture: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver: its version, the CUDA version it serves, and its GPUs."""

    version: str
    cuda: str
    gpus: tuple[Gpu, ...]


def driver() -> Driver:
    """What is here.

    Raises:
        BackendUnavailableError: There is no driver, or it does not start.
    """
    hint = "install NVIDIA's driver"
    try:
        api = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise BackendUnavailableError(f"there is no NVIDIA driver: {DRIVER_LIBRARY} is missing", hint=hint) from error
    if status := api.cuInit(0):
        raise BackendUnavailableError(f"NVIDIA's driver does not start (CUresult {status})", hint=hint)
    cuda, count = ctypes.c_int(0), ctypes.c_int(0)
    api.cuDriverGetVersion(ctypes.byref(cuda))
    api.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(api, index) for index in range(count.value))
    return Driver(driver_version(), f"{cuda.value // 1000}.{cuda.value % 1000 // 10}", gpus)


def driver_version(file: Path = VERSION_FILE) -> str:
    """The loaded driver's version, as 580.65.06; "unknown" where the system does not say."""
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
