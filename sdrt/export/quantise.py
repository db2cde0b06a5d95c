"""Rewrite a UNet's graph so that its products are computed in int8, with a weights file of its own.

Requires: an exported UNet in fp32, and the range of each product's input.
Does: passes the input of every convolution and matrix product with constant weights through QuantizeLinear and
DequantizeLinear, and stores its weights as int8 followed by DequantizeLinear; modules to keep are left alone. Libraries
fuse these nodes with the product into an int8 kernel; one that does not computes the same in fp32.
Ensures: inputs, outputs and opset are unchanged, and the modules that are kept are bit-identical.

Weights are quantised symmetrically, with one scale per output channel; inputs have one scale per tensor, and a zero
point if their values are mostly of one sign (after SiLU), as in Jacob et al. 2018 (arXiv:1712.05877, section 2.1) and
ONNX's QDQ format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.graphs.values import module_path

if TYPE_CHECKING:
    import onnx

#: Names of modules that stay in fp32. The inputs of the first and the last convolution and of the shortcuts are not
#: normalised, and their errors reach the output directly; the timestep's layers take next to no time
#: (docs/decisions/0057).
KEPT = ("conv_in", "conv_out", "conv_shortcut", "time_embedding", "time_emb_proj")
#: Above this ratio of -minimum to maximum a symmetric grid is as accurate, and needs no zero point.
ONE_SIDED = 0.4
#: Operators that are quantised.
OPERATORS = ("Conv", "MatMul", "Gemm")
ALIGNMENT_BYTES = 64


def products(graph: onnx.GraphProto, kept: Collection[str] = ()) -> list[onnx.NodeProto]:
    """Return the nodes to compute in int8.

    Args:
        graph: The UNet's graph.
        kept: Paths of modules that stay in fp32 with all their submodules, besides those named in `KEPT`.
    """
    weights = {weight.name for weight in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in OPERATORS and node.input[1] in weights and not _is_kept(module_of(node), kept)
    ]


def module_of(node: onnx.NodeProto) -> str:
    """Return the path of a node's module, such as "up_blocks.3.resnets.1.conv_shortcut"; "" if it is unknown."""
    return module_path(node).removeprefix("unet.")


def _is_kept(module: str, kept: Collection[str]) -> bool:
    return not set(KEPT).isdisjoint(module.split(".")) or any(f"{module}.".startswith(f"{path}.") for path in kept)


def quantise(source: Path, target: Path, ranges: Mapping[str, tuple[float, float]], kept: Collection[str] = ()) -> int:
    """Write the quantised graph to ``target`` and its weights to ``target``.data.

    Args:
        source: The graph in fp32, with its weights file beside it.
        target: The .onnx file to write.
        ranges: Minimum and maximum by tensor, for the first input of each of `products`.
        kept: Paths of modules that stay in fp32 with all their submodules.

    Returns:
        The number of products computed in int8.
    """
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    graph = model.graph
    chosen = {node.output[0] for node in products(graph, kept)}
    with target.with_name(f"{target.name}.data").open("wb") as file:
        rewriting = _Rewriting(graph, source.parent, file, ranges)
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.output[0] in chosen:
                nodes += rewriting.quantise_inputs(node)
            nodes.append(node)
        constants = rewriting.constants(nodes)
    for field, values in ((graph.node, nodes), (graph.initializer, constants)):
        kept_values = list(values)
        del field[:]
        field.extend(kept_values)
    target.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(target))
    return len(chosen)


class _Rewriting:
    """Builds the quantising nodes and the constants of the rewritten graph."""

    def __init__(
        self, graph: onnx.GraphProto, folder: Path, file: IO[bytes], ranges: Mapping[str, tuple[float, float]]
    ) -> None:
        self._graph, self._folder, self._file, self._ranges = graph, folder, file, ranges
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._infos = {value.name: value for value in graph.value_info}
        self._made: dict[str, str] = {}
        self._new: dict[str, onnx.TensorProto] = {}

    def quantise_inputs(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Connect a product to its quantised input and weights; return the nodes that do not exist yet for them."""
        value, weights = node.input[:2]
        nodes = [] if value in self._made else self._quantised(value)
        nodes += [] if weights in self._made else self._dequantised(weights, _output_axis(node))
        node.input[0], node.input[1] = self._made[value], self._made[weights]
        return nodes

    def constants(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """Return the constants that the nodes read; those with external data are copied to the new weights file."""
        import onnx

        read = {name for node in nodes for name in node.input}
        constants = [tensor for name, tensor in self._weights.items() if name in read]
        for tensor in constants:
            if onnx.external_data_helper.uses_external_data(tensor):
                self._store(tensor, self._bytes(tensor))
        return [*constants, *self._new.values()]

    def _quantised(self, value: str) -> list[onnx.NodeProto]:
        """Build the nodes that quantise and dequantise a tensor."""
        nodes, constants = rounding(value, self._ranges[value])
        self._new |= {constant.name: constant for constant in constants}
        self._made[value] = nodes[-1].output[0]
        if value in self._infos:
            info = self._graph.value_info.add()
            info.CopyFrom(self._infos[value])
            info.name = self._made[value]
        return nodes

    def _dequantised(self, name: str, axis: int) -> list[onnx.NodeProto]:
        """Store weights as int8, with one scale per index of ``axis``, and build the node that dequantises them."""
        import onnx

        tensor = self._weights[name]
        weights = np.frombuffer(self._bytes(tensor), np.float32).reshape(tuple(tensor.dims))
        others = tuple(index for index in range(weights.ndim) if index != axis)
        # The scale of a channel whose weights are all 0 must not be 0.
        scales = np.maximum(np.abs(weights).max(axis=others), np.finfo(np.float32).tiny * 127) / np.float32(127)
        column = scales.reshape([-1 if index == axis else 1 for index in range(weights.ndim)])
        levels = np.rint(weights / column).astype(np.int8)
        stored = onnx.TensorProto(name=f"int8.{name}", data_type=onnx.TensorProto.INT8, dims=levels.shape)
        self._store(stored, levels.tobytes())
        self._new[stored.name] = stored
        self._new[f"int8.{name}.scale"] = onnx.numpy_helper.from_array(scales, f"int8.{name}.scale")
        self._made[name] = f"int8.{name}.back"
        inputs = [stored.name, f"int8.{name}.scale"]
        node = onnx.helper.make_node("DequantizeLinear", inputs, [self._made[name]], f"{stored.name}.node", axis=axis)
        return [node]

    def _bytes(self, tensor: onnx.TensorProto) -> bytes:
        """Return a constant's bytes, from the model or from its external file."""
        if not tensor.external_data:
            return bytes(tensor.raw_data)
        where: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
        with (self._folder / where["location"]).open("rb") as file:
            file.seek(int(where.get("offset", "0")))
            return file.read(int(where["length"]))

    def _store(self, tensor: onnx.TensorProto, data: bytes) -> None:
        """Write a constant's bytes to the new weights file, aligned, and make the constant refer to them."""
        import onnx

        self._file.write(bytes(-self._file.tell() % ALIGNMENT_BYTES))
        where = {"location": Path(self._file.name).name, "offset": str(self._file.tell()), "length": str(len(data))}
        self._file.write(data)
        del tensor.external_data[:]
        for key, text in where.items():
            tensor.external_data.add(key=key, value=text)
        tensor.data_location = onnx.TensorProto.EXTERNAL


def rounding(value: str, extent: tuple[float, float]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Build the nodes that quantise and dequantise a tensor, and their constants.

    Args:
        value: The tensor's name.
        extent: Minimum and maximum of its values.

    Returns:
        The nodes, of which the last outputs the rounded tensor; and the constants.
    """
    import onnx

    names = [f"int8.{value}.{part}" for part in ("scale", "zero", "rounded", "back")]
    constants = [onnx.numpy_helper.from_array(part, name) for name, part in zip(names, grid(*extent), strict=False)]
    return [
        onnx.helper.make_node("QuantizeLinear", [value, *names[:2]], [names[2]], name=f"{names[2]}.node"),
        onnx.helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]], name=f"{names[3]}.node"),
    ], constants


def grid(least: float, largest: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Compute scale and zero point of a range: uint8 if the values are mostly positive, else int8 around 0.

    Jacob et al. 2018 (arXiv:1712.05877), section 2.1.
    """
    least, largest = min(least, 0.0), max(largest, 0.0)
    bound = max(-least, largest, float(np.finfo(np.float32).tiny) * 255)
    if -least > ONE_SIDED * largest:
        return np.asarray(bound / 127, np.float32), np.asarray(0, np.int8)
    scale = max(largest - least, bound) / 255
    return np.asarray(scale, np.float32), np.asarray(round(-least / scale), np.uint8)


def _output_axis(node: onnx.NodeProto) -> int:
    """Return the axis of the output channels in a product's weights."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1
