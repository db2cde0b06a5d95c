"""The layers of a network, as an engine set's manifest records them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from sdrt.artefacts.engine_set import AttentionLayer, LayerList

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

PRECISIONS = {
    "FLOAT": "fp32",
    "HALF": "fp16",
    "BF16": "bf16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def precision_name(dtype: rtx.DataType) -> str:
    """Return the name of a data type of TensorRT, such as "fp16"."""
    name = str(dtype.name)
    return PRECISIONS.get(name, name.lower())


def layer_list(network: rtx.INetworkDefinition, attentions: list[rtx.IAttention]) -> LayerList:
    """Return the number of layers by kind and precision, and every attention.

    Args:
        network: Parsed network, with its attentions marked as in the build.
        attentions: Attentions of the network.
    """
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        precision = precision_name(layer.get_output(0).dtype) if layer.num_outputs else "none"
        kinds[layer.type.name.lower()][precision] += 1
    return LayerList(
        kinds={kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())},
        attentions=tuple(_attention(attention) for attention in attentions),
    )


def _attention(attention: rtx.IAttention) -> AttentionLayer:
    query, key = attention.get_input(0), attention.get_input(1)
    _, heads, queries, head_size = query.shape
    return AttentionLayer(
        name=attention.name,
        heads=heads,
        queries=queries,
        keys=key.shape[2],
        head_size=head_size,
        precision=precision_name(query.dtype),
        fused=not attention.decomposable,
    )
