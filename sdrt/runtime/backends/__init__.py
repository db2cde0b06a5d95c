"""Which backends can run here, and the opening of their engines. Imports no backend's library until one is opened."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, SdrtError, UsageError
from sdrt.files import system_errors
from sdrt.install_lines import extra_line, package_line
from sdrt.machine import nvidia
from sdrt.machine.cpu import unsuited, usable_cpus
from sdrt.machine.packages import distribution, installed_version
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BackendName, EngineManifest, EngineSet
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.artefacts.tuned import TuneRecord
    from sdrt.runtime.backends.base import Engine
    from sdrt.runtime.backends.session import Session

__all__ = ["BACKENDS", "GPU_BACKENDS", "available", "choose_backend", "open_engine", "open_session"]


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
    entry = _entry(backend)
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


@system_errors()
def open_engine(engines: EngineSet, component: ComponentName, *, threads: int | None = None) -> Engine:
    """Open one component of an engine set, to be run here.

    Args:
        engines: The opened, hence verified, set.
        component: Its name.
        threads: Threads it may use; None is all CPUs that this process may use.

    Raises:
        EngineError: The set lacks the component, or was built by another version of the library.
        TrustError: The component is not what was sealed.
        BackendUnavailableError: The backend cannot run here, or the processor lacks what the set was built for.
        UsageError: ``threads`` is below 1.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1", hint="leave it out to use every CPU")
    spec = engines.component(component)
    backend = engines.manifest.backend
    available(backend)
    check_host(engines.manifest)
    entry = _entry(backend)
    try:
        module = import_module(entry.module)
        if entry.needs_gpu:
            alone: Engine = module.open_alone(engines, component, *module.libraries(backend))
            return alone
        engines.check(component)
        engine: Engine = getattr(module, entry.engine)(component, spec, engines.path, threads or usable_cpus())
    except ImportError as error:
        raise _import_error(backend, error) from error
    return engine


def open_session(
    engines: EngineSet,
    *,
    threads: int | None = None,
    cuda_graphs: bool = True,
    progress: Progress = silent,
) -> Session:
    """Open an engine set to run its components here, each engine when it is first asked for.

    Args:
        engines: The opened, hence verified, set.
        threads: Threads each engine may use on the CPU; None is all CPUs that this process may use.
        cuda_graphs: Whether TensorRT's steps are replayed from a CUDA graph; the numbers are the same without.
        progress: Told what the user should know and no error says.

    Raises:
        EngineError: The set was built by another version of the library.
        BackendUnavailableError: The backend cannot run here, or the set was built for another kind of device.
        UsageError: ``threads`` is below 1.
    """
    from sdrt.runtime.backends.session import Session

    backend = engines.manifest.backend
    if not _entry(backend).needs_gpu:
        return Session(engines, lambda component: open_engine(engines, component, threads=threads))
    available(backend)
    check_host(engines.manifest)
    try:
        module = import_module("sdrt.runtime.backends.tensorrt")
        libraries = module.libraries(backend)
        session: Session = module.TensorRtSession(engines, *libraries, cuda_graphs=cuda_graphs, progress=progress)
    except ImportError as error:
        raise _import_error(backend, error) from error
    return session


def _import_error(backend: str, error: ImportError) -> SdrtError:
    """What an installed library that does not import comes to."""
    from sdrt.libraries.errors import is_out_of_memory

    if is_out_of_memory(error):
        return ResourceError(f"{backend} cannot be loaded: out of memory", hint="free memory")
    hint = f"reinstall {backend}"
    return BackendUnavailableError(f"{backend} is installed but does not import: {error}", hint=hint)


def check_host(manifest: EngineManifest) -> None:
    """Hold that a set was built by the libraries that are here, for a processor like this one.

    A version-compatible set opens in later versions of the same major too.

    Raises:
        EngineError: Another version of a library built it.
        BackendUnavailableError: This processor is of another kind, or lacks instructions that it was built for.
    """
    for library, built_by in manifest.versions.items():
        here = installed_version(library)
        if here == built_by or (manifest.version_compatible and _is_later_of_the_same_major(here, built_by)):
            continue
        name, _ = distribution(library) or (library, here)
        hint = f"{package_line(f'{name}=={built_by}')}; or build them again here"
        raise EngineError(f"the engines were built by {library} {built_by}; here is {here}", hint=hint)
    lacking = unsuited(manifest.host)
    if lacking:
        hint = "build them again on this machine"
        raise BackendUnavailableError(f"the engines were built for {lacking}, which this is not", hint=hint)


def _is_later_of_the_same_major(here: str, built_by: str) -> bool:
    """Whether a version such as 11.4.0.29 or 11.4.0.post1 comes after another, and their first numbers are the same."""
    one, other = ([int(number) for number in re.findall(r"\d+", text)] for text in (here, built_by))
    return one[:1] == other[:1] and one > other


def _entry(backend: str) -> _Backend:
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
