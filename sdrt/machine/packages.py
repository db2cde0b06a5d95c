"""Which libraries are installed, without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sdrt.errors import BackendUnavailableError
from sdrt.install_lines import extra_line

# Distributions that bring the same module; only one of a row can be installed.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    # What has a CUDA version in its name can be installed alone: cu12 runs on older drivers.
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "cuda-bindings": ("cuda-bindings",),
}
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "trt", "tensorrt-rtx": "rtx"}


def distribution(library: str) -> tuple[str, str] | None:
    """Return the name and version of the installed distribution that brings a library; None where none does."""
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
    """Return the versions of those distributions that are installed."""
    return {package: found for package in packages if (found := package_version(package)) is not None}


def installed_version(library: str, needed_by: str | None = None) -> str:
    """A library's version.

    Args:
        library: Its name.
        needed_by: The backend whose extra brings it; None where it is the backend itself.

    Raises:
        BackendUnavailableError: It is not installed; the hint names the extra that brings it.
    """
    found = distribution(library)
    if found is not None:
        return found[1]
    hint = extra_line(_EXTRAS[needed_by or library])
    raise BackendUnavailableError(f"{library} is not installed", hint=hint)
