"""From a checkpoint to an ONNX bundle. The only stage that needs torch."""

from sdrt.export.bundle_export import export_bundle

__all__ = ["export_bundle"]
