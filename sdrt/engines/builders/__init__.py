"""One builder a backend: `builder` gives it by name."""

from __future__ import annotations

from importlib import import_module

from sdrt.engines.builders.base import Builder, ComponentJob, Report
from sdrt.errors import UsageError

__all__ = ["Builder", "ComponentJob", "Report", "builder"]

# Each module imports its library only when it builds: the key of a set is known without it.
_BUILDERS = {
    "onnxruntime": ("sdrt.engines.builders.onnxruntime", "OnnxRuntimeBuilder"),
    "openvino": ("sdrt.engines.builders.openvino", "OpenVinoBuilder"),
    "tensorrt": ("sdrt.engines.builders.tensorrt", "TensorRtBuilder"),
    "tensorrt-rtx": ("sdrt.engines.builders.tensorrt", "TensorRtRtxBuilder"),
}


def builder(backend: str, report: Report | None = None) -> Builder:
    """The builder of a backend's engines.

    Args:
        backend: Its name.
        report: Told how far a component is.

    Raises:
        UsageError: There is none of this name.
    """
    if backend not in _BUILDERS:
        raise UsageError(f"no engines are built for backend {backend!r}", hint=f"choose from {', '.join(_BUILDERS)}")
    module, name = _BUILDERS[backend]
    built: Builder = getattr(import_module(module), name)(report)
    return built
