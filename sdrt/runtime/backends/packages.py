"""Which libraries are installed, without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from sdrt.errors import BackendUnavailableError

# Distributions that bring the same module; only one of a row can be installed.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "cuda-python": ("cuda-bindings",),
}
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "trt", "tensorrt-rtx": "rtx"}


def installed_version(library: str, needed_by: str | None = None) -> str:
    """A library's version.

    Args:
        library: Its name.
        needed_by: The backend whose extra brings it; None where it is the backend itself.

    Raises:
        BackendUnavailableError: It is not installed; the hint names the extra that brings it.
    """
    for distribution in _DISTRIBUTIONS[library]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    hint = f"pip install 'sdrt[{_EXTRAS[needed_by or library]}]'"
    raise BackendUnavailableError(f"{library} is not installed", hint=hint)
