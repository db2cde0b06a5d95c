"""From a checkpoint to an ONNX bundle, and from one in fp32 to a quantised one.

Only the first needs torch, and so the name is resolved when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdrt.export.bundle_export import export_bundle

__all__ = ["export_bundle"]


def __getattr__(name: str) -> Any:
    if name != "export_bundle":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdrt.export.bundle_export import export_bundle

    return export_bundle
