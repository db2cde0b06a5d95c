"""What we use of TensorRT's module, typed by the stubs of TensorRT-RTX: mypy holds every call of ours against them.

tests/engines/test_tensorrt_api.py holds the same names against TensorRT 10.16 and 11.4, which cannot be installed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


class Library(Protocol):
    """tensorrt or tensorrt_rtx. What only one of them has is asked for in `config` alone."""

    __name__: str
    __version__: str

    AttentionNormalizationOp: type[rtx.AttentionNormalizationOp]
    Builder: type[rtx.Builder]
    BuilderFlag: type[rtx.BuilderFlag]
    ComputeCapability: type[rtx.ComputeCapability]
    DataType: type[rtx.DataType]
    ErrorCode: type[rtx.ErrorCode]
    HardwareCompatibilityLevel: type[rtx.HardwareCompatibilityLevel]
    IAttentionOutputLayer: type[rtx.IAttentionOutputLayer]
    ILogger: type[rtx.ILogger]
    IProgressMonitor: type[rtx.IProgressMonitor]
    LayerType: type[rtx.LayerType]
    MemoryPoolType: type[rtx.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[rtx.NetworkDefinitionCreationFlag]
    OnnxParser: type[rtx.OnnxParser]
