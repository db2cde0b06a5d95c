"""Fused kernels of attentions: TensorRT has them for some shapes only, which trial builds find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sdrt.engines.trt.layers import precision_name
from sdrt.libraries.tensorrt import Library
from sdrt.libraries.tensorrt_log import Messages

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

#: Text of the log if an attention that must not be decomposed has no kernel.
NO_KERNEL = "not supported by a dedicated kernel"
#: Texts of other versions' logs for the same; all texts of a tuple are in one line.
LIKE_NO_KERNEL = ((NO_KERNEL,), ("Could not find any implementation for node",), ("MyelinCheckException", "ttention"))
#: Largest head size with a kernel: 256 builds in TensorRT-RTX 1.7, 264 and 512 do not.
LARGEST_HEAD = 256


@dataclass(frozen=True)
class AttentionShape:
    """The properties that decide whether an attention has a kernel. Shapes are without the batch; mask may be None."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: rtx.DataType
    mask: tuple[int, ...] | None
    mask_dtype: rtx.DataType | None
    causal: bool


def attentions(trt: Library, network: rtx.INetworkDefinition) -> list[rtx.IAttention]:
    """Return every IAttention of a network, in order."""
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            # get_layer returns the base class; the Python API casts down like this.
            layer.__class__ = trt.IAttentionOutputLayer
            found.append(cast("rtx.IAttentionOutputLayer", layer).attention)
    return found


def is_never_fused(trt: Library, attention: rtx.IAttention) -> bool:
    """Return whether an attention surely has no kernel: it is fp32, or its head is too large."""
    query = attention.get_input(0)
    return query.dtype == trt.DataType.FLOAT or query.shape[3] > LARGEST_HEAD


def may_lack_kernel(messages: Messages) -> bool:
    """Return whether a build may have failed because an attention has no kernel."""
    return any(messages.say(*texts) for texts in LIKE_NO_KERNEL)


def shape_of(attention: rtx.IAttention) -> AttentionShape:
    """Return the shape and types of an attention."""
    query, key, value = (attention.get_input(index) for index in range(3))
    mask = attention.mask
    return AttentionShape(
        query=tuple(query.shape)[1:],
        key=tuple(key.shape)[1:],
        value=tuple(value.shape)[1:],
        dtype=query.dtype,
        mask=None if mask is None else tuple(mask.shape)[1:],
        mask_dtype=None if mask is None else mask.dtype,
        causal=attention.causal,
    )


def has_kernel(
    trt: Library,
    builder: rtx.Builder,
    new_config: Callable[[], rtx.IBuilderConfig],
    shape: AttentionShape,
    rows: tuple[int, int, int],
) -> bool:
    """Build an attention alone; return whether it has a fused kernel. This takes a fraction of a second.

    Args:
        trt: Module of TensorRT.
        builder: Builder of the module.
        new_config: Creates a configuration for the targets of the build.
        shape: Shape and types of the attention.
        rows: Smallest, best and largest batch.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = new_config()
    profile = builder.create_optimization_profile()

    def add(name: str, dtype: rtx.DataType, rest: tuple[int, ...]) -> rtx.ITensor:
        profile.set_shape(name, *((row, *rest) for row in rows))
        return network.add_input(name, dtype, (-1, *rest))

    query, key, value = (add(name, shape.dtype, getattr(shape, name)) for name in ("query", "key", "value"))
    attention = network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, shape.causal)
    if attention is None:
        return False
    if shape.mask is not None and shape.mask_dtype is not None:
        attention.mask = add("mask", shape.mask_dtype, shape.mask)
    network.mark_output(attention.get_output(0))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def describe(attention: rtx.IAttention) -> str:
    """Return an attention's name and shape as text."""
    shape = shape_of(attention)
    heads, queries, head_size = shape.query
    return f"{attention.name} ({heads} heads of {head_size}, {queries}x{shape.key[1]}, {precision_name(shape.dtype)})"
