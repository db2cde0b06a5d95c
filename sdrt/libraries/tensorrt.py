"""The part of TensorRT's module that sdrt uses, typed by the stubs of TensorRT-RTX, so that mypy checks every call.

tests/engines/test_tensorrt_api.py checks the same names against TensorRT 10.16 and 11.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


class Library(Protocol):
    """The module tensorrt or tensorrt_rtx. Only `config` uses names that one of them lacks."""

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
