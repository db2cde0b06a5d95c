"""A bundle's graph as a tree: which module each node came from is written in it, and so are all shapes."""

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

#: Where the exporter wrote the modules that a node lies in, from the outermost to the node's own name.
#: Modules in modules; a network's are ten deep, and what is deeper comes from no exporter.
DEEPEST = 40
#: The module that a component's graph is all of, by component.
WHOLE = {"text_encoder": "text_encoder", "unet": "unet", "vae_encoder": "encoder", "vae_decoder": "decoder"}
#: Class -> what the path of such a module ends in, by component where that matters. The first that fits counts.
KINDS: tuple[tuple[str, str], ...] = (
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
#: Operator -> the class of a module that has this one with weights.
BY_OPERATOR = {
    "Conv": "Conv2d",
    "Gemm": "Linear",
    "MatMul": "Linear",
    "GroupNormalization": "GroupNorm",
    "InstanceNormalization": "GroupNorm",
    "LayerNormalization": "LayerNorm",
    "Gather": "Embedding",
}
#: Operator -> which of its inputs are weights.
WEIGHTS = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "Gather": (0,),
}
#: Operators that a weight may pass before it is used, as in a quantised graph.
PASSED = ("DequantizeLinear", "Cast", "Transpose", "Identity")


def graph_tree(component: str, graph: onnx.GraphProto) -> Block:
    """A component's graph as a tree; a part in which no node says where it came from is one block."""
    return _Reader(component, graph).tree()


def load_graph(path: Path) -> onnx.GraphProto:
    """The graph of an ONNX file that was validated (see `Bundle.graph`), without its weights.

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
    """Looks a graph's nodes up by what they put out, its tensors' shapes and weights by name."""

    def __init__(self, component: str, graph: onnx.GraphProto) -> None:
        self.component = component
        self.nodes = list(graph.node)
        self.paths = [block_path(component, node) for node in self.nodes]
        self.inputs, self.outputs = [value.name for value in graph.input], {value.name for value in graph.output}
        self.shapes = {value.name: axes(value) for value in (*graph.value_info, *graph.input, *graph.output)}
        self.weights: dict[str, Shape] = {weight.name: tuple(weight.dims) for weight in graph.initializer}
        self.makers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.users: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.users[name].append(index)

    def tree(self) -> Block:
        """The whole graph."""
        return self._block("", None, range(len(self.nodes)))

    def _block(self, path: str, parent: str | None, members: Sequence[int]) -> Block:
        """A module and what lies below it."""
        below: dict[str, list[int]] = {}
        own = []
        for index in members:
            deeper = _next(path, self.paths[index])
            if deeper is None:
                own.append(index)
            else:
                below.setdefault(deeper, []).append(index)
        children = [self._block(name, path, inside) for name, inside in below.items()]
        kept = tuple(child for child in children if child.parameters or child.flops)
        taken, joined = self._taken(parent, members)
        return Block(
            name=path,
            kind=self._kind(path, own),
            parameters=self._count(own) + sum(child.parameters for child in kept),
            flops=sum(self._flops(index) for index in own) + sum(child.flops for child in kept),
            input=taken,
            output=self._given(members),
            joined=joined,
            children=kept,
        )

    def _kind(self, path: str, own: Iterable[int]) -> str:
        """The class of a module, by its path, or by the operator with weights that it consists of."""
        for kind, pattern in KINDS:
            if re.search(rf"(^|[./])({pattern})$", f"{self.component}/{path}"):
                return kind
        if re.fullmatch(r"(down|up)_blocks\.\d+", path):
            attends = any(name.startswith(f"{path}.attentions.") for name in self.paths)
            return f"{'CrossAttn' if attends else ''}{'Down' if path.startswith('down') else 'Up'}Block2D"
        operators = [self.nodes[index].op_type for index in own]
        return next((BY_OPERATOR[name] for name in operators if name in BY_OPERATOR), "Module")

    def _taken(self, parent: str | None, members: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
        """Shape of what a module takes in first, and the channels that its parent concatenated to give it."""
        if parent is None:
            return self._shape(self.inputs[0]) if self.inputs else (), ()
        inside = {name for index in members for name in self.nodes[index].output}
        for index in members:
            node = self.nodes[index]
            for position, name in enumerate(node.input):
                ids = node.op_type == "Gather" and position == 1
                if name in inside or (name in self.weights and not ids) or not self._shape(name):
                    continue
                return self._shape(name), self._joined(name, parent)
        return (), ()

    def _joined(self, name: str, parent: str) -> tuple[int, ...]:
        """Channels of the pictures that ``parent`` concatenated to give a tensor; () where none were."""
        index = self.makers.get(name)
        if index is None or self.nodes[index].op_type != "Concat" or self.paths[index] != parent:
            return ()
        shapes = [self._shape(part) for part in self.nodes[index].input]
        return tuple(shape[0] for shape in shapes) if all(len(shape) == 3 for shape in shapes) else ()

    def _given(self, members: Sequence[int]) -> Shape:
        """Shape of what a module puts out last."""
        inside = set(members)
        for index in reversed(members):
            for name in self.nodes[index].output:
                if name in self.outputs or any(user not in inside for user in self.users[name]):
                    return self._shape(name)
        return ()

    def _shape(self, name: str) -> Shape:
        """A tensor's shape without its batch; () where the graph does not say it."""
        dims = self.shapes.get(name) or self.weights.get(name) or ()
        return tuple(size for size in dims[1:] if isinstance(size, int))

    def _weight(self, name: str) -> str | None:
        """The weight that a tensor is, or is made of alone."""
        while name not in self.weights:
            index = self.makers.get(name)
            if index is None or self.nodes[index].op_type not in PASSED:
                return None
            name = self.nodes[index].input[0]
        return name

    def _count(self, own: Iterable[int]) -> int:
        """How many weights a module has of its own.

        A weight counts once however often the module runs. Modules with equal weights, such as biases of zeros, share
        an initialiser in the graph; it counts for each.
        """
        used = {name for index in own for name in self._used(self.nodes[index])}
        return sum(math.prod(self.weights[name]) for name in used)

    def _used(self, node: onnx.NodeProto) -> Iterator[str]:
        """The weights that a node computes with."""
        positions = WEIGHTS.get(node.op_type, ())
        if node.op_type == "Add":
            # A bias, as long as the last axis is, or a small position embedding, which exporters look up beforehand.
            # What is added otherwise is no weight.
            given = self._shape(node.output[0])
            added = (given[-1:], (1, *given))
            positions = tuple(at for at in (0, 1) if self.weights.get(node.input[at]) in added)
        for at in positions:
            name = self._weight(node.input[at]) if at < len(node.input) else None
            if name is not None:
                yield name

    def _flops(self, index: int) -> int:
        """Of one sample: two for each multiply-add of a node's products."""
        node = self.nodes[index]
        given = self._shape(node.output[0])
        if node.op_type == "Attention":
            return self._attention_flops(node)
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            return 0
        weight = self._weight(node.input[1])
        if weight is None:
            return 2 * math.prod(given) * self._shape(node.input[0])[-1] if given else 0
        places = given[1:] if node.op_type == "Conv" else given[:-1]
        multiply_adds: int = math.prod(self.weights[weight]) * math.prod(places)
        return 2 * multiply_adds

    def _attention_flops(self, node: onnx.NodeProto) -> int:
        """Of both products, from [heads, tokens, head size] or [tokens, width] of queries, keys and values."""
        queries, keys, values = (self._shape(name) for name in node.input[:3])
        if not (queries and keys and values):
            return 0
        heads = queries[0] if len(queries) == 3 else 1
        return 2 * heads * queries[-2] * keys[-2] * (queries[-1] + values[-1])


def block_path(component: str, node: onnx.NodeProto) -> str:
    """The path of the innermost module that a node lies in; "" for the component itself, or where it is not said."""
    words = [word for word in module_path(node).split(".") if word][:DEEPEST]
    if words[:1] == [WHOLE.get(component)]:
        del words[0]
    return ".".join(words)


def _next(path: str, deeper: str) -> str | None:
    """The path one module further down towards ``deeper``; None where that is ``path`` itself.

    Lists of modules are no modules: below "" comes ``down_blocks.0``, not ``down_blocks``.
    """
    if deeper == path:
        return None
    words = deeper.removeprefix(f"{path}." if path else "").split(".")
    length = 2 if words[1:2] and words[1].isdigit() else 1
    return ".".join(filter(None, (path, *words[:length])))
