"""Versions of installed libraries, read without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sdrt.errors import BackendUnavailableError
from sdrt.install_lines import extra_line

# Distributions that provide the same module; only one of a row can be installed.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    # A distribution for one CUDA version can be installed by itself: cu12 runs on older drivers.
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "cuda-bindings": ("cuda-bindings",),
}
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "trt", "tensorrt-rtx": "rtx"}


def distribution(library: str) -> tuple[str, str] | None:
    """Return the name and version of the installed distribution that provides a library; None if there is none."""
    for name in _DISTRIBUTIONS.get(library, (library,)):
        if (found := package_version(name)) is not None:
            return name, found
    return None


def package_version(package: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the given distributions by name, without those that are not installed."""
    return {package: found for package in packages if (found := package_version(package)) is not None}


def installed_version(library: str, needed_by: str | None = None) -> str:
    """Return the version of an installed library.

    Args:
        library: Name of the library.
        needed_by: Backend whose extra installs it; None if the library is the backend itself.

    Raises:
        BackendUnavailableError: It is not installed; the hint names the extra that installs it.
    """
    found = distribution(library)
    if found is not None:
        return found[1]
    hint = extra_line(_EXTRAS[needed_by or library])
    raise BackendUnavailableError(f"{library} is not installed", hint=hint)
