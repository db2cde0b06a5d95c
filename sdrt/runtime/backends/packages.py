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
}
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "trt", "tensorrt-rtx": "rtx"}


def installed_version(library: str) -> str:
    """A library's version.

    Raises:
        BackendUnavailableError: It is not installed; the hint names the extra that brings it.
    """
    for distribution in _DISTRIBUTIONS[library]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    hint = f"pip install 'sdrt[{_EXTRAS[library]}]'"
    raise BackendUnavailableError(f"{library} is not installed", hint=hint)
