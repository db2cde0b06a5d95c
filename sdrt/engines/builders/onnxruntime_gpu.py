"""Graphs for ONNX Runtime's GPU providers: every node runs on the GPU, none computes with shapes.

If fallback to the CPU is off, a session is refused when one node of its graph is placed there. The CUDA provider does
so for nodes that compute with the result of a ``Shape``, and for operators that have no CUDA kernel in the version that
the graph's opset selects. Exported graphs have both: group normalisation is a function whose body reads shapes,
CLIP's mask is expanded to the batch, and ``Sin``, ``Cos``, ``Equal``, ``ReduceMax`` and ``InstanceNormalization`` lack
kernels in their newer versions. So group normalisation becomes an instance normalisation between reshapes to constants,
attention and GELU become ONNX Runtime's own operators, and the graph is declared at opset 18, for which every operator
left has a kernel (docs/decisions/0034).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.errors import BackendUnavailableError, EngineError, UsageError
from sdrt.install_lines import extra_line

if TYPE_CHECKING:
    import onnx

#: Later opsets add types to the operators of these graphs and change nothing else that they use.
OPSET = 18
#: The domain of ONNX Runtime's own operators.
OWN_DOMAIN = "com.microsoft"
#: Operators whose result is a shape; nodes that read it are placed on the CPU.
READS_SHAPES = ("Shape", "Size")
#: Attributes of ONNX's Attention that its replacement lacks, with the values at which they change nothing.
_NEUTRAL = {"q_num_heads": 0, "kv_num_heads": 0, "softcap": 0.0, "qk_matmul_output_mode": 0}
_SWAP_HEADS = (0, 2, 1, 3)


def gpu_graph(path: Path) -> onnx.ModelProto:
    """Return an exported graph, rewritten for a GPU provider; it refers to the same weights file.

    Args:
        path: The graph, exported at opset 23 or later.

    Raises:
        BackendUnavailableError: onnx is not installed.
        EngineError: An attention that ONNX Runtime's operator cannot compute, or a value of unknown shape.
        UsageError: The graph still computes with shapes; those of opsets below 23 do.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        hint = extra_line("gpu")
        raise BackendUnavailableError("onnx is needed to build for a GPU and is not installed", hint=hint) from error

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    _Rewriting(model, path).run()
    left = sorted({node.op_type for node in model.graph.node if node.op_type in READS_SHAPES})
    if left:
        message = f"{path} computes with shapes ({', '.join(left)}), which no GPU provider of ONNX Runtime does"
        raise UsageError(message, hint="export the checkpoint at opset 23, or leave --provider out")
    return model


class _Rewriting:
    """The rewriting of one model, in place.

    Args:
        model: A model with its values' shapes.
        path: The file that the model was read from.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        from onnx import helper

        self._make = helper.make_node
        self._model, self._path = model, path
        graph = model.graph
        self._opset = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {name: node for node in graph.node for name in node.output}
        values = [*graph.input, *graph.value_info, *graph.output]
        self._types = {value.name: value.type.tensor_type for value in values}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        """Rewrite the model; remove nodes and weights that are no longer used."""
        from onnx import helper

        for node in self._model.graph.node:
            if node.op_type == "GroupNormalization":
                self._group_normalization(node)
            elif node.op_type == "Gelu" and not node.domain:
                self._gelu(node)
            elif node.op_type == "Attention" and not node.domain:
                self._attention(node)
            else:
                self._nodes.append(node)
        self._opset.version = min(self._opset.version, OPSET)
        if any(node.domain == OWN_DOMAIN for node in self._nodes):
            self._model.opset_import.append(helper.make_opsetid(OWN_DOMAIN, 1))
        self._replace()

    def _replace(self) -> None:
        """Put the new nodes in place of the old ones."""
        graph = self._model.graph
        needed = {value.name for value in graph.output}
        kept = []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed.update(node.input)
        made = {name for node in kept for name in node.output}
        for field, values in (
            (graph.node, kept[::-1]),
            (graph.initializer, [one for one in (*graph.initializer, *self._constants.values()) if one.name in needed]),
            (graph.value_info, [value for value in graph.value_info if value.name in made]),
        ):
            taken = list(values)
            del field[:]
            field.extend(taken)

    def _group_normalization(self, node: onnx.NodeProto) -> None:
        """Replace a group normalisation: normalise each group as one channel, then scale and shift the channels."""
        sample, scale, shift = node.input
        attributes = _attributes(node)
        groups = attributes["num_groups"]
        channels, *space = self._lengths(sample)
        (out,) = node.output
        name = node.name or out
        flat, normal, back, scaled, column, row = (
            f"{out}/{part}" for part in ("groups", "normal", "channels", "scaled", "scale", "shift")
        )
        dtype = np.dtype(f"f{2 if self._types[sample].elem_type == _half() else 4}")
        one, zero = self._constant(np.ones(groups, dtype)), self._constant(np.zeros(groups, dtype))
        per_channel = self._shape(channels, *[1] * len(space))
        self._add("Reshape", [sample, self._shape(0, groups, -1)], flat, name)
        epsilon = attributes.get("epsilon", 1e-5)
        self._add("InstanceNormalization", [flat, one, zero], normal, name, epsilon=epsilon)
        self._add("Reshape", [normal, self._shape(0, channels, *space)], back, name)
        # ONNX Runtime folds these two into constants.
        self._add("Reshape", [scale, per_channel], column, name)
        self._add("Reshape", [shift, per_channel], row, name)
        self._add("Mul", [back, column], scaled, name)
        self._add("Add", [scaled, row], out, name)

    def _gelu(self, node: onnx.NodeProto) -> None:
        """Replace a GELU, an operator of opset 20 and later, by ONNX Runtime's operator for the same approximation."""
        operator = "FastGelu" if _attributes(node).get("approximate") == b"tanh" else "Gelu"
        (given,), (out,) = node.input, node.output
        self._add(operator, [given], out, node.name or out, domain=OWN_DOMAIN)

    def _attention(self, node: onnx.NodeProto) -> None:
        """Replace an attention by ONNX Runtime's operator, which takes [batch, tokens, heads x head size]."""
        attributes = _attributes(node)
        query, key, value, *more = node.input
        masked = bool(more and more[0])
        causal = bool(attributes.pop("is_causal", 0)) or (masked and self._is_causal(more[0]))
        scale = attributes.pop("scale", None)
        other = {name for name, given in attributes.items() if given != _NEUTRAL.get(name)}
        if other or len(node.output) > 1 or any(more[1:]) or (masked and not causal):
            what = ", ".join(sorted(other)) or "a mask that is not causal, or keys of earlier runs"
            message = f"{self._path}: attention {node.name or node.output[0]} has {what}"
            raise EngineError(message, hint="export the checkpoint again, or leave --provider out")
        heads = self._lengths(query)[0]
        (out,) = node.output
        name = node.name or out
        rows = []
        for part, given in (("query", query), ("key", key), ("value", value)):
            apart = f"{out}/{part}"
            self._add("Transpose", [given], f"{apart}/rows", name, perm=_SWAP_HEADS)
            self._add("Reshape", [f"{apart}/rows", self._shape(0, 0, -1)], apart, name)
            rows.append(apart)
        chosen = {"num_heads": heads, "unidirectional": int(causal)} | ({} if scale is None else {"scale": scale})
        self._add("MultiHeadAttention", rows, f"{out}/together", name, domain=OWN_DOMAIN, **chosen)
        self._add("Reshape", [f"{out}/together", self._shape(0, 0, heads, -1)], f"{out}/apart", name)
        self._add("Transpose", [f"{out}/apart"], out, name, perm=_SWAP_HEADS)

    def _is_causal(self, mask: str) -> bool:
        """Return whether a mask is constant but for the batch and lets a token attend to itself and earlier ones."""
        from onnx import numpy_helper

        while (maker := self._made_by.get(mask)) is not None and maker.op_type == "Expand":
            mask = maker.input[0]
        tensor = self._weights.get(mask)
        if tensor is None:
            return False
        values = numpy_helper.to_array(tensor, str(self._path.parent))
        return values.dtype == bool and np.array_equal(np.squeeze(values), np.tri(values.shape[-1], dtype=bool))

    def _lengths(self, name: str) -> list[int]:
        """Return the lengths of a value's axes after the batch."""
        axes = self._types[name].shape.dim[1:] if name in self._types else []
        if not axes or not all(axis.dim_value for axis in axes):
            message = f"{self._path}: the shape of {name} is not known"
            raise EngineError(message, hint="export the checkpoint again")
        return [axis.dim_value for axis in axes]

    def _shape(self, *lengths: int) -> str:
        return self._constant(np.array(lengths, np.int64))

    def _constant(self, values: np.ndarray[Any, np.dtype[Any]]) -> str:
        """Return the name of an initializer that holds these values, made once for all that use it."""
        from onnx import numpy_helper

        name = f"constant/{values.dtype}/{'x'.join(map(str, values.tolist()))}"
        self._constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def _add(self, operator: str, inputs: list[str], output: str, name: str, **attributes: Any) -> None:
        self._nodes.append(self._make(operator, inputs, [output], name=f"{name}/{output}", **attributes))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _half() -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT16)
