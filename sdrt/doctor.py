"""What this machine can run: packages, driver, processor, memory and the store; and how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

from sdrt.artefacts.store import Store
from sdrt.errors import BackendUnavailableError, SdrtError
from sdrt.files import working_folder_is_gone
from sdrt.install_lines import extra_line, removal_line
from sdrt.machine import nvidia
from sdrt.machine.cpu import available_memory_bytes, cpu_features, supports_bf16, usable_cpus
from sdrt.machine.packages import distribution, package_version
from sdrt.runtime.backends.registry import BACKENDS, available, choose_backend
from sdrt.version import __version__

#: The packages that matter here, by distribution, and the extras that bring each.
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("cpu",),
    "openvino": ("cpu",),
    "onnxruntime-gpu": ("gpu",),
    "tensorrt": ("trt",),
    "tensorrt-rtx": ("rtx",),
    "cuda-bindings": ("rtx", "trt"),
    "torch": ("export",),
    "diffusers": ("export",),
    "transformers": ("export",),
    "onnx": ("export", "gpu", "plot", "rtx", "trt"),
    "polygraphy": ("compare",),
    "scipy": ("compare", "dev"),
}
#: Distributions of one module: each overwrites the other's files.
RIVALS = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "onnxruntime"}


@dataclass(frozen=True)
class Runnable:
    """A backend: whether it runs here, and if not why and what to do."""

    backend: str
    runs: bool
    reason: str | None
    remedy: str | None


@dataclass(frozen=True)
class Package:
    """A package: its version, or the line that installs it."""

    name: str
    version: str | None
    install: str | None


def examine(store: Store) -> dict[str, Any]:
    """Everything, as plain values: what --json prints."""
    return {
        "sdrt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "memory_available_bytes": available_memory_bytes(),
        "gpu": gpu(),
        "packages": [asdict(package) for package in packages()],
        "backends": [asdict(entry) for entry in backends()],
        "auto": auto(),
        "store": store_facts(store),
    }


def processor() -> dict[str, Any]:
    """CPUs that may be used, and the instructions that decide how fast they are."""
    features = cpu_features()
    return {
        "cpus": usable_cpus(),
        "amx": "amx_bf16" in features,
        "avx512_bf16": "avx512_bf16" in features,
        "bf16": supports_bf16(),
    }


def gpu() -> dict[str, Any]:
    """The driver and its GPUs, or why there is none."""
    try:
        found = nvidia.driver()
    except BackendUnavailableError as error:
        return {"driver": None, "problem": error.message, "remedy": error.hint}
    return {"driver": found.version, "cuda": found.cuda, "gpus": [asdict(each) for each in found.gpus]}


def packages() -> tuple[Package, ...]:
    """The packages of `PACKAGES`."""
    versions = {name: _version(name) for name in PACKAGES}
    held = {name for name, found in versions.items() if found}
    return tuple(Package(name, found, None if found else install_line(name, held)) for name, found in versions.items())


def install_line(name: str, held: Set[str]) -> str:
    """The command that brings a missing package, by the extra of which most is there.

    Args:
        name: Of `PACKAGES`.
        held: The packages that are there.
    """
    # What only one extra brings tells that this extra was asked for once.
    begun = [extra for extra in PACKAGES[name] if any(PACKAGES[other] == (extra,) for other in held)]
    line = extra_line((begun or PACKAGES[name])[0])
    rival = RIVALS.get(name)
    return line if rival is None or rival not in held else f"{removal_line(rival)} && {line}"


def _version(name: str) -> str | None:
    if name not in RIVALS:
        found = distribution(name)
        return found[1] if found else None
    return package_version(name)


def backends() -> tuple[Runnable, ...]:
    """Each backend, the fastest first."""
    entries = []
    for backend in BACKENDS:
        try:
            available(backend)
        except BackendUnavailableError as error:
            entries.append(Runnable(backend, False, error.message, error.hint))
        else:
            entries.append(Runnable(backend, True, None, None))
    return tuple(entries)


def auto() -> str | None:
    """What --backend auto means here; None where nothing runs."""
    try:
        return choose_backend()[0]
    except BackendUnavailableError:
        return None


def store_facts(store: Store) -> dict[str, Any]:
    """Where the store is, what lies in it, and whether it can be used."""
    try:
        store.check()
        problem = None
    except SdrtError as error:
        problem = f"{error.message} ({error.hint})"
    place = store.root
    while not os.path.exists(place):  # noqa: PTH110  # where there is no permission, nothing is there
        place = place.parent
    if problem is None and not store.root.is_absolute() and working_folder_is_gone():
        problem = "the working folder is gone (change to a folder that exists)"
    if problem is None and not os.access(place, os.W_OK):
        problem = f"no permission to write in {place} (choose another with --store)"
    size_bytes = None
    if problem is None:
        try:
            size_bytes = sum(entry.size_bytes for entry in store.entries())
        except SdrtError as error:
            problem = f"{error.message} ({error.hint})"
    return {
        "path": str(store.root),
        "free_bytes": shutil.disk_usage(place).free,
        "size_bytes": size_bytes,
        "problem": problem,
    }
