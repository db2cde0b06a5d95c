"""One builder a backend: `builder` gives it by name."""

from __future__ import annotations

from importlib import import_module

from sdrt.engines.builders.base import Builder, ComponentJob
from sdrt.errors import UsageError

__all__ = ["Builder", "ComponentJob", "builder"]

# Each module imports its library only when it builds: the key of a set is known without it.
_BUILDERS = {
    "onnxruntime": ("sdrt.engines.builders.onnxruntime", "OnnxRuntimeBuilder"),
    "openvino": ("sdrt.engines.builders.openvino", "OpenVinoBuilder"),
}


def builder(backend: str) -> Builder:
    """The builder of a backend's engines.

    Raises:
        UsageError: There is none of this name.
    """
    if backend not in _BUILDERS:
        raise UsageError(f"no engines are built for backend {backend!r}", hint=f"choose from {', '.join(_BUILDERS)}")
    module, name = _BUILDERS[backend]
    built: Builder = getattr(import_module(module), name)()
    return built
