"""Check of this machine: packages, driver, processor, memory and the store, with remedies for what is missing."""

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

#: The packages that sdrt uses, by distribution, and the extras that install each.
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
#: Distributions of the same module: each overwrites the other's files.
RIVALS = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "onnxruntime"}


@dataclass(frozen=True)
class Runnable:
    """A backend: whether it runs here, else the reason and the remedy."""

    backend: str
    runs: bool
    reason: str | None
    remedy: str | None


@dataclass(frozen=True)
class Package:
    """A package: its version, or the command that installs it."""

    name: str
    version: str | None
    install: str | None


def examine(store: Store) -> dict[str, Any]:
    """Examine this machine; return the results as plain values, which --json prints."""
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
    """Return the number of usable CPUs and the instruction sets that matter for speed."""
    features = cpu_features()
    return {
        "cpus": usable_cpus(),
        "amx": "amx_bf16" in features,
        "avx512_bf16": "avx512_bf16" in features,
        "bf16": supports_bf16(),
    }


def gpu() -> dict[str, Any]:
    """Return the driver's versions and its GPUs, or the reason why there is none, with the remedy."""
    try:
        found = nvidia.driver()
    except BackendUnavailableError as error:
        return {"driver": None, "problem": error.message, "remedy": error.hint}
    return {"driver": found.version, "cuda": found.cuda, "gpus": [asdict(each) for each in found.gpus]}


def packages() -> tuple[Package, ...]:
    """Return the packages of `PACKAGES`, installed or not."""
    versions = {name: _version(name) for name in PACKAGES}
    held = {name for name, found in versions.items() if found}
    return tuple(Package(name, found, None if found else install_line(name, held)) for name, found in versions.items())


def install_line(name: str, held: Set[str]) -> str:
    """Return the command that installs a missing package, by an extra that is partly installed if there is one.

    Args:
        name: Name of the package, in `PACKAGES`.
        held: Names of the installed packages.
    """
    # A package that only one extra installs shows that the user chose this extra.
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
    """Check each backend; return them with the fastest first."""
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
    """Return the backend that auto chooses here, or None if none can run."""
    try:
        return choose_backend()[0]
    except BackendUnavailableError:
        return None


def store_facts(store: Store) -> dict[str, Any]:
    """Return the store's path, its size and free space in bytes, and the reason why it cannot be used, if any."""
    try:
        store.check()
        problem = None
    except SdrtError as error:
        problem = f"{error.message} ({error.hint})"
    place = store.root
    while not os.path.exists(place):  # noqa: PTH110  # without permission, it counts as missing
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
