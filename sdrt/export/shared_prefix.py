"""The part of a UNet that both halves of classifier-free guidance share: all up to its first cross-attention.

The halves have the same latents and the same timestep, and differ in their hidden states alone. Values that do not
depend on the hidden states can be computed once per picture and doubled where the rest of the graph reads them. The
result is the same, since no row of a batch depends on another. In SD v1 the shared part is the first convolution, the
first ResNet block, the first self-attention, which is the costliest one, and the queries of the first cross-attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Operators that read shapes. They are not shared: their result must have the batch size of the nodes that read it.
SHAPE_OPERATORS = ("Shape", "Size")
#: Operators whose multiply-adds are counted.
PRODUCTS = ("Conv", "Gemm", "MatMul", "Attention")


@dataclass(frozen=True)
class SharedPrefix:
    """A UNet's graph in two parts.

    Attributes:
        nodes: Nodes computed once per picture; they read no value of the rest.
        rest: Nodes computed for both halves.
        doubled: Values with one row per picture that the rest reads with two, in the order of their first use.
    """

    nodes: tuple[onnx.NodeProto, ...]
    rest: tuple[onnx.NodeProto, ...]
    doubled: tuple[str, ...]


def split_prefix(graph: onnx.GraphProto, *, sample: str, timestep: str, states: str, batch: str) -> SharedPrefix:
    """Split a graph into the nodes that depend on the hidden states and those that do not.

    Nodes that depend on the timestep alone are placed where they are needed, so that few values have to be doubled.
    Values are doubled along their first axis only, so a value that the rest reads is shared only if value_info says
    that its first axis is the batch.

    Args:
        graph: The UNet's graph, in topological order.
        sample: Name of the scaled latents, one row per picture.
        timestep: Name of the timesteps, one row per picture.
        states: Name of the hidden states, two rows per picture.
        batch: Name of the batch axis in the graph's value_info.
    """
    firsts = {value.name: first_axis(value) for value in graph.value_info} | dict.fromkeys((sample, timestep), batch)
    of_pictures = _reached(graph.node, {sample, timestep})
    kept_apart = {node.output[0] for node in graph.node if node.op_type in SHAPE_OPERATORS or _has_subgraph(node)}
    kept_apart |= {value.name for value in graph.output}
    while True:
        apart = _reached(graph.node, {states}, kept_apart)
        shared = _needed(graph.node, _reached(graph.node, {sample}) - apart)
        rest = tuple(node for node in graph.node if node.output[0] not in shared)
        read = dict.fromkeys(name for node in rest for name in node.input)
        doubled = [name for name in read if name in of_pictures and (name in shared or name in (sample, timestep))]
        unknown = {name for name in doubled if firsts.get(name) != batch}
        if not unknown:
            nodes = tuple(node for node in graph.node if node.output[0] in shared)
            return SharedPrefix(nodes, rest, tuple(doubled))
        kept_apart |= unknown


def _reached(nodes: Iterable[onnx.NodeProto], start: set[str], through: Iterable[str] = ()) -> set[str]:
    """Return ``start``, the outputs of nodes that compute ``through``, and all values computed from either."""
    reached, forced = set(start), set(through)
    for node in nodes:
        if not reached.isdisjoint(node.input) or not forced.isdisjoint(node.output):
            reached.update(node.output)
    return reached


def _needed(nodes: Iterable[onnx.NodeProto], values: set[str]) -> set[str]:
    """Return the outputs of all nodes needed to compute the values, the values' own nodes included."""
    needed, outputs = set(values), set[str]()
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.output):
            outputs.update(node.output)
            needed.update(node.input)
    return outputs


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def first_axis(value: onnx.ValueInfoProto) -> str:
    """Return the name of a value's first axis, or "" if it has no name or the value has no axes."""
    axes = value.type.tensor_type.shape.dim
    return axes[0].dim_param if axes else ""


def count_flops(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> int:
    """Count the FLOPs of one sample in some nodes of a graph: two for each multiply-add of their products.

    Counts the same products as `sdrt.export.flops`, from the shapes in the graph.
    """
    shapes = {value.name: _lengths(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] not in shapes:
            shapes[node.output[0]] = shapes.get(node.input[0], ())
    return sum(_node_flops(node, shapes) for node in nodes)


def _lengths(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return a value's shape, with 1 for each dynamic axis."""
    return tuple(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)


def _node_flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in PRODUCTS:
        return 0
    if node.op_type == "Attention":
        queries, keys, values = (shapes[name] for name in node.input[:3])
        return 2 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    summed = shapes[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(summed)
