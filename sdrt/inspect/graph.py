"""A component's ONNX graph as a tree of blocks, from the module paths and the shapes that it contains."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.errors import BackendUnavailableError
from sdrt.graphs.values import axes, module_path
from sdrt.inspect.block import Block, Shape
from sdrt.install_lines import requirement_line

if TYPE_CHECKING:
    import onnx

#: Largest depth of nested modules. A network's are ten deep; no exporter writes deeper ones.
MAX_DEPTH = 40
#: Component -> the outermost module of its graph.
ROOT_MODULES = {"text_encoder": "text_encoder", "unet": "unet", "vae_encoder": "encoder", "vae_decoder": "decoder"}
#: Class and the pattern that "component/path" of its modules ends in. The first match counts.
CLASS_PATTERNS: tuple[tuple[str, str], ...] = (
    ("ResnetBlock2D", r"resnets\.\d+"),
    ("Downsample2D", r"downsamplers\.\d+"),
    ("Upsample2D", r"upsamplers\.\d+"),
    ("Attention", r"attn[12]|vae_\w+/mid_block\.attentions\.\d+"),
    ("Transformer2DModel", r"attentions\.\d+"),
    ("BasicTransformerBlock", r"transformer_blocks\.\d+"),
    ("GEGLU", r"ff\.net\.0"),
    ("FeedForward", r"ff"),
    ("TimestepEmbedding", r"time_embedding"),
    ("CLIPTextEmbeddings", r"embeddings"),
    ("CLIPEncoderLayer", r"layers\.\d+"),
    ("CLIPEncoder", r"text_encoder/encoder"),
    ("CLIPAttention", r"self_attn"),
    ("CLIPMLP", r"mlp"),
    ("UNetMidBlock2DCrossAttn", r"unet/mid_block"),
    ("UNetMidBlock2D", r"mid_block"),
    ("DownEncoderBlock2D", r"vae_encoder/down_blocks\.\d+"),
    ("UpDecoderBlock2D", r"vae_decoder/up_blocks\.\d+"),
    ("CLIPTextModel", r"text_encoder/"),
    ("UNet2DConditionModel", r"unet/"),
    ("Encoder", r"vae_encoder/"),
    ("Decoder", r"vae_decoder/"),
)
#: Operator -> the class of a module that computes it with weights.
CLASS_OF_OPERATOR = {
    "Conv": "Conv2d",
    "Gemm": "Linear",
    "MatMul": "Linear",
    "GroupNormalization": "GroupNorm",
    "InstanceNormalization": "GroupNorm",
    "LayerNormalization": "LayerNorm",
    "Gather": "Embedding",
}
#: Operator -> indices of the inputs that are weights.
WEIGHT_INPUTS = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "Gather": (0,),
}
#: Operators between a weight and its use, for example in a quantised graph.
PASS_THROUGH = ("DequantizeLinear", "Cast", "Transpose", "Identity")


def graph_tree(component: str, graph: onnx.GraphProto) -> Block:
    """Build the tree of a component's graph; nodes without a module path belong to the root."""
    return _Reader(component, graph).tree()


def load_graph(path: Path) -> onnx.GraphProto:
    """Load the graph of an ONNX file that was validated (see `Bundle.graph`), without its weights.

    Raises:
        BackendUnavailableError: onnx, which reads graphs, is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        hint = requirement_line("onnx", extra="export")
        raise BackendUnavailableError("onnx, which reads graphs, is not installed", hint=hint) from error
    return onnx.load(path, load_external_data=False).graph


class _Reader:
    """A graph with indices: module paths by node, shapes, weights, producers and consumers by tensor."""

    def __init__(self, component: str, graph: onnx.GraphProto) -> None:
        self.component = component
        self.nodes = list(graph.node)
        self.paths = [block_path(component, node) for node in self.nodes]
        self.inputs, self.outputs = [value.name for value in graph.input], {value.name for value in graph.output}
        self.shapes = {value.name: axes(value) for value in (*graph.value_info, *graph.input, *graph.output)}
        self.weights: dict[str, Shape] = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.consumers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers[name].append(index)

    def tree(self) -> Block:
        return self._build_block("", None, range(len(self.nodes)))

    def _build_block(self, path: str, parent: str | None, members: Sequence[int]) -> Block:
        """Build the block of a module.

        Args:
            path: The module's path.
            parent: The parent module's path; None for the root.
            members: Indices of the nodes in the module and below it.
        """
        below: dict[str, list[int]] = {}
        own = []
        for index in members:
            deeper = _child_path(path, self.paths[index])
            if deeper is None:
                own.append(index)
            else:
                below.setdefault(deeper, []).append(index)
        children = [self._build_block(name, path, inside) for name, inside in below.items()]
        kept = tuple(child for child in children if child.parameters or child.flops)
        input_shape, joined = self._input_of(parent, members)
        return Block(
            name=path,
            kind=self._class_of(path, own),
            parameters=self._count_parameters(own) + sum(child.parameters for child in kept),
            flops=sum(self._count_flops(index) for index in own) + sum(child.flops for child in kept),
            input=input_shape,
            output=self._output_shape(members),
            joined=joined,
            children=kept,
        )

    def _class_of(self, path: str, own: Iterable[int]) -> str:
        """Return the class of a module, by its path or by the first operator with weights among its own nodes."""
        for kind, pattern in CLASS_PATTERNS:
            if re.search(rf"(^|[./])({pattern})$", f"{self.component}/{path}"):
                return kind
        if re.fullmatch(r"(down|up)_blocks\.\d+", path):
            attends = any(name.startswith(f"{path}.attentions.") for name in self.paths)
            return f"{'CrossAttn' if attends else ''}{'Down' if path.startswith('down') else 'Up'}Block2D"
        operators = [self.nodes[index].op_type for index in own]
        return next((CLASS_OF_OPERATOR[name] for name in operators if name in CLASS_OF_OPERATOR), "Module")

    def _input_of(self, parent: str | None, members: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
        """Return the shape of a module's first input, and the channels that its parent concatenated to form it."""
        if parent is None:
            return self._shape_of(self.inputs[0]) if self.inputs else (), ()
        inside = {name for index in members for name in self.nodes[index].output}
        for index in members:
            node = self.nodes[index]
            for position, name in enumerate(node.input):
                ids = node.op_type == "Gather" and position == 1
                if name in inside or (name in self.weights and not ids) or not self._shape_of(name):
                    continue
                return self._shape_of(name), self._concatenated_channels(name, parent)
        return (), ()

    def _concatenated_channels(self, name: str, parent: str) -> tuple[int, ...]:
        """Return the channels of the tensors that ``parent`` concatenated to form a tensor; () if none were."""
        index = self.producers.get(name)
        if index is None or self.nodes[index].op_type != "Concat" or self.paths[index] != parent:
            return ()
        shapes = [self._shape_of(part) for part in self.nodes[index].input]
        return tuple(shape[0] for shape in shapes) if all(len(shape) == 3 for shape in shapes) else ()

    def _output_shape(self, members: Sequence[int]) -> Shape:
        """Return the shape of a module's last output."""
        inside = set(members)
        for index in reversed(members):
            for name in self.nodes[index].output:
                if name in self.outputs or any(user not in inside for user in self.consumers[name]):
                    return self._shape_of(name)
        return ()

    def _shape_of(self, name: str) -> Shape:
        """Return a tensor's shape without the batch, or () if the graph has none."""
        dims = self.shapes.get(name) or self.weights.get(name) or ()
        return tuple(size for size in dims[1:] if isinstance(size, int))

    def _find_weight(self, name: str) -> str | None:
        """Return the name of the weight that a tensor is, or is computed from by `PASS_THROUGH` alone; else None."""
        while name not in self.weights:
            index = self.producers.get(name)
            if index is None or self.nodes[index].op_type not in PASS_THROUGH:
                return None
            name = self.nodes[index].input[0]
        return name

    def _count_parameters(self, own: Iterable[int]) -> int:
        """Count the weights that a module's own nodes use.

        A weight counts once however often the module runs. Modules with equal weights, such as biases of zeros, share
        an initialiser in the graph; it counts for each module.
        """
        used = {name for index in own for name in self._weights_of(self.nodes[index])}
        return sum(math.prod(self.weights[name]) for name in used)

    def _weights_of(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield the names of the weights that a node uses."""
        positions = WEIGHT_INPUTS.get(node.op_type, ())
        if node.op_type == "Add":
            # A bias, as long as the last axis, or a small position embedding, which exporters look up beforehand. Other
            # constants that are added are not weights.
            output_shape = self._shape_of(node.output[0])
            added = (output_shape[-1:], (1, *output_shape))
            positions = tuple(at for at in (0, 1) if self.weights.get(node.input[at]) in added)
        for at in positions:
            name = self._find_weight(node.input[at]) if at < len(node.input) else None
            if name is not None:
                yield name

    def _count_flops(self, index: int) -> int:
        """Count the FLOPs of one sample in a node: two for each multiply-add of its products."""
        node = self.nodes[index]
        output_shape = self._shape_of(node.output[0])
        if node.op_type == "Attention":
            return self._count_attention_flops(node)
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            return 0
        weight = self._find_weight(node.input[1])
        if weight is None:
            return 2 * math.prod(output_shape) * self._shape_of(node.input[0])[-1] if output_shape else 0
        places = output_shape[1:] if node.op_type == "Conv" else output_shape[:-1]
        multiply_adds: int = math.prod(self.weights[weight]) * math.prod(places)
        return 2 * multiply_adds

    def _count_attention_flops(self, node: onnx.NodeProto) -> int:
        """Count the FLOPs of both products; queries, keys and values are [heads,tokens,head size] or [tokens,width]."""
        queries, keys, values = (self._shape_of(name) for name in node.input[:3])
        if not (queries and keys and values):
            return 0
        heads = queries[0] if len(queries) == 3 else 1
        return 2 * heads * queries[-2] * keys[-2] * (queries[-1] + values[-1])


def block_path(component: str, node: onnx.NodeProto) -> str:
    """Return the path of the innermost module of a node; "" for the component itself, or if it is unknown."""
    words = [word for word in module_path(node).split(".") if word][:MAX_DEPTH]
    if words[:1] == [ROOT_MODULES.get(component)]:
        del words[0]
    return ".".join(words)


def _child_path(path: str, deeper: str) -> str | None:
    """Return the path of the child of ``path`` that contains ``deeper``; None if ``deeper`` is ``path`` itself.

    Lists of modules do not count as modules: a child of "" is ``down_blocks.0``, not ``down_blocks``.
    """
    if deeper == path:
        return None
    words = deeper.removeprefix(f"{path}." if path else "").split(".")
    length = 2 if words[1:2] and words[1].isdigit() else 1
    return ".".join(filter(None, (path, *words[:length])))
