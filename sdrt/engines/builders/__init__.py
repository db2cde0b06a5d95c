"""The builders, one for each backend."""

from __future__ import annotations

from importlib import import_module

from sdrt.engines.builders.base import Builder, ComponentJob, Report
from sdrt.errors import UsageError

__all__ = ["Builder", "ComponentJob", "Report", "builder"]

# Each module imports its library only when it builds: the key of a set needs no library.
_BUILDERS = {
    "onnxruntime": ("sdrt.engines.builders.onnxruntime", "OnnxRuntimeBuilder"),
    "openvino": ("sdrt.engines.builders.openvino", "OpenVinoBuilder"),
    "tensorrt": ("sdrt.engines.builders.tensorrt", "TensorRtBuilder"),
    "tensorrt-rtx": ("sdrt.engines.builders.tensorrt", "TensorRtRtxBuilder"),
}


def builder(backend: str, report: Report | None = None) -> Builder:
    """Return the builder of a backend's engines.

    Args:
        backend: Name of the backend.
        report: Receives the progress of a component.

    Raises:
        UsageError: No builder has this name.
    """
    if backend not in _BUILDERS:
        raise UsageError(f"no engines are built for backend {backend!r}", hint=f"choose from {', '.join(_BUILDERS)}")
    module, name = _BUILDERS[backend]
    built: Builder = getattr(import_module(module), name)(report)
    return built
