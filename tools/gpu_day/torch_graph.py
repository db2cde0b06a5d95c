"""Runs an exported graph in torch, operator by operator, on a CPU or a GPU, in that hardware's fp16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper, numpy_helper

#: TensorProto.DataType -> dtype.
DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
#: int64 tensors up to this size stay on the host: shapes and axes, which must not wait for the device.
HOST_ELEMENTS = 16

Attributes = Mapping[str, Any]
#: Function that receives a node, its outputs and its inputs.
Watch = Callable[[onnx.NodeProto, Sequence[torch.Tensor], Sequence[torch.Tensor | None]], None]
Operator = Callable[["Node", Sequence[Any]], Any]


class Node:
    """A node with its attributes; small integer inputs are available as numbers."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        self.attributes: Attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default if it is missing."""
        return self.attributes.get(name, default)


class TorchGraph:
    """A graph that runs in torch. Values are freed after their last use.

    Args:
        path: The .onnx file.
        device: "cpu" or "cuda".
        half: dtype that float16 is computed in; float32 gives the graph's outputs without rounding.
        random_weights: Whether external weights are random, not read; for timing only.
        watch: Called with every node as it runs.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        *,
        half: torch.dtype = torch.float16,
        random_weights: bool = False,
        watch: Watch | None = None,
    ) -> None:
        graph = onnx.load(str(path), load_external_data=not random_weights).graph
        self.types = {**DTYPES, 10: half}
        self.inputs = {value.name: value.type.tensor_type for value in graph.input}
        self.outputs = [value.name for value in graph.output]
        self._device, self._watch = device, watch
        self._nodes = [Node(node) for node in graph.node]
        self._constants = {tensor.name: self._weight(tensor) for tensor in graph.initializer}
        last = {name: index for index, node in enumerate(graph.node) for name in node.input}
        kept = {*self.outputs, *self._constants}
        self._freed = [
            [name for name in set(node.input) if last[name] == index and name not in kept]
            for index, node in enumerate(graph.node)
        ]

    def _weight(self, tensor: onnx.TensorProto) -> torch.Tensor:
        dtype = self.types[tensor.data_type]
        if tensor.data_location == tensor.EXTERNAL:
            drawn = torch.randn(tuple(tensor.dims), device=self._device)
            return drawn.div(max(1.0, drawn[0].numel()) ** 0.5).to(dtype)
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(dtype)
        small = value.dtype == torch.int64 and value.numel() <= HOST_ELEMENTS
        return value if small or tensor.name in self._scales() else value.to(self._device)

    def _scales(self) -> set[str]:
        """Return the names of the tensors with the factors of Resize nodes."""
        return {node.proto.input[2] for node in self._nodes if node.proto.op_type == "Resize"}

    @torch.no_grad()
    def __call__(self, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the graph and return its outputs by name."""
        values: dict[str, torch.Tensor] = {**self._constants, **feeds}
        for node, freed in zip(self._nodes, self._freed, strict=True):
            given = [values[name] if name else None for name in node.proto.input]
            made = self._run(node, given)
            outputs = made if isinstance(made, (tuple, list)) else (made,)
            values.update(zip(node.proto.output, outputs, strict=True))
            if self._watch is not None:
                self._watch(node.proto, outputs, given)
            for name in freed:
                values.pop(name, None)
        return {name: values[name] for name in self.outputs}

    def _run(self, node: Node, given: Sequence[Any]) -> Any:
        if node.proto.op_type == "Cast":
            return given[0].to(self.types[node.get("to")])
        return OPERATORS[node.proto.op_type](node, given)


def _numbers(tensor: torch.Tensor) -> list[int]:
    return [int(number) for number in tensor.reshape(-1).tolist()]


def _concat(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(given), node.get("axis"))


def _split(node: Node, given: Sequence[Any]) -> Any:
    axis = node.get("axis", 0)
    if len(given) > 1 and given[1] is not None:
        return given[0].split(_numbers(given[1]), axis)
    return given[0].split(-(-given[0].shape[axis] // len(node.proto.output)), axis)


def _unsqueeze(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    value, axes = given[0], _numbers(given[1])
    rank = value.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _reshape(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    keep = not node.get("allowzero", 0)
    lengths = [given[0].shape[i] if n == 0 and keep else n for i, n in enumerate(_numbers(given[1]))]
    return given[0].reshape(lengths)


def _slice(node: Node, given: Sequence[Any]) -> torch.Tensor:
    value: torch.Tensor = given[0]
    starts, ends = _numbers(given[1]), _numbers(given[2])
    axes = _numbers(given[3]) if len(given) > 3 and given[3] is not None else range(len(starts))
    for start, end, axis in zip(starts, ends, axes, strict=True):
        length = value.shape[axis]
        first, last = (max(0, min(n + length if n < 0 else n, length)) for n in (start, end))
        value = value.narrow(axis, first, last - first)
    return value


def _gather(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    data, indices, axis = given[0], given[1], node.get("axis", 0)
    if not indices.ndim and indices.device.type == "cpu":
        return data.select(axis, int(indices))
    taken = data.index_select(axis, indices.reshape(-1).to(data.device))
    return taken.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _shape(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor(list(given[0].shape)[node.get("start", 0) : node.get("end")])


def _expand(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    return given[0].expand(np.broadcast_shapes(tuple(given[0].shape), tuple(_numbers(given[1]))))


def _reduce(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    axes, keep = _numbers(given[1]), bool(node.get("keepdims", 1))
    return given[0].sum(axes, keep) if node.proto.op_type == "ReduceSum" else given[0].mean(axes, keep)


def _gemm(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    left = given[0].T if node.get("transA") else given[0]
    right = given[1].T if node.get("transB") else given[1]
    product: torch.Tensor = left @ right * node.get("alpha", 1.0)
    return product + given[2] * node.get("beta", 1.0) if len(given) > 2 else product


def _conv(node: Node, given: Sequence[Any]) -> torch.Tensor:
    value, bias = given[0], given[2] if len(given) > 2 else None
    top, left, bottom, right = node.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        value, top, left = F.pad(value, (left, right, top, bottom)), 0, 0
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    return F.conv2d(value, given[1], bias, strides, (top, left), dilations, node.get("group", 1))


def _group_norm(node: Node, given: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.group_norm(given[0], node.get("num_groups"), given[1], given[2], node.get("epsilon", 1e-5))


def _layer_norm(node: Node, given: Sequence[Any]) -> torch.Tensor:
    bias = given[2] if len(given) > 2 else None
    return F.layer_norm(given[0], given[1].shape, given[1], bias, node.get("epsilon", 1e-5))


def _attention(node: Node, given: Sequence[Any]) -> torch.Tensor:
    mask = given[3] if len(given) > 3 else None
    causal = bool(node.get("is_causal", 0))
    query, key, value = given[:3]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=node.get("scale"))


def _resize(node: Node, given: Sequence[Any]) -> torch.Tensor:
    if len(given) > 2 and given[2] is not None:
        return F.interpolate(given[0], scale_factor=given[2].tolist()[2:], mode="nearest")
    return F.interpolate(given[0], size=_numbers(given[3])[2:], mode="nearest")


OPERATORS: dict[str, Operator] = {
    "Add": lambda node, given: given[0] + given[1],
    "Sub": lambda node, given: given[0] - given[1],
    "Mul": lambda node, given: given[0] * given[1],
    "Div": lambda node, given: given[0] / given[1],
    "MatMul": lambda node, given: given[0] @ given[1],
    "Sqrt": lambda node, given: given[0].sqrt(),
    "Sin": lambda node, given: given[0].sin(),
    "Cos": lambda node, given: given[0].cos(),
    "Sigmoid": lambda node, given: given[0].sigmoid(),
    "Gelu": lambda node, given: F.gelu(given[0], approximate=node.get("approximate", b"none").decode()),
    "Transpose": lambda node, given: given[0].permute(node.get("perm")),
    "Attention": _attention,
    "Concat": _concat,
    "Conv": _conv,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
}
