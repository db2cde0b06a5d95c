"""Export checkpoints to ONNX bundles, and derive other bundles from them.

Only `export_bundle` needs torch; it is imported at its first use.
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
