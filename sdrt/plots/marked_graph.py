"""The bundle's UNet with the queries and keys of its cross-attentions among its outputs, run by ONNX Runtime.

The fused operator does not return attention weights; they are recomputed from its inputs (docs/decisions/0066).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sdrt.arrays import Array
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent
from sdrt.errors import BackendUnavailableError, BundleError
from sdrt.graphs.values import scopes
from sdrt.install_lines import extra_line
from sdrt.libraries.errors import library_error
from sdrt.runtime.backends.base import Engine

if TYPE_CHECKING:
    import onnx

TEXT_INPUT = "encoder_hidden_states"
#: Operators between the text encoder's states and the keys that are computed from them.
ON_THE_WAY = {"Add", "Cast", "Gemm", "Identity", "MatMul", "Mul", "Reshape", "Transpose", "Unsqueeze"}

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CrossAttention:
    """One cross-attention: its module in the UNet, its tensors [batch,heads,tokens,head_size], and its scale."""

    name: str
    queries: str
    keys: str
    scale: float | None


def check_markable() -> None:
    """Raise BackendUnavailableError unless onnx and ONNX Runtime, which mark and run a graph, are installed."""
    for name in ("onnx", "onnxruntime"):
        if find_spec(name) is None:
            hint = extra_line("cpu", "plot")
            raise BackendUnavailableError(f"{name} is needed to plot attention and is not installed", hint=hint)


def mark(model: onnx.ModelProto) -> list[CrossAttention]:
    """Add the queries and keys of every cross-attention to a graph's outputs.

    Args:
        model: The UNet's graph, at opset 23 or later; modified in place.

    Returns:
        The cross-attentions, in the order in which they run.

    Raises:
        BundleError: The graph has none, since it was exported without the Attention operator.
    """
    import onnx

    producers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "Attention" or not _comes_from_text(node.input[1], producers):
            continue
        scales = [attribute.f for attribute in node.attribute if attribute.name == "scale"]
        found.append(CrossAttention(_place(node), node.input[0], node.input[1], scales[0] if scales else None))
    if not found:
        hint = "export it again with --opset 23 or 24, which have the Attention operator"
        raise BundleError(f"the unet's graph has no cross-attention as one operator (opset {_opset(model)})", hint=hint)
    outputs = dict.fromkeys(tensor for each in found for tensor in (each.queries, each.keys))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return found


def _comes_from_text(tensor: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a tensor is a linear map of the text encoder's states; the keys of self-attention are not."""
    while tensor in producers and producers[tensor].op_type in ON_THE_WAY:
        tensor = producers[tensor].input[0]
    return tensor == TEXT_INPUT


def _place(node: onnx.NodeProto) -> str:
    """Return the module of a node, such as ``mid_block.attentions.0.transformer_blocks.0``, or else its own name."""
    names = [name for name in scopes(node) if ".transformer_blocks." in name]
    return names[-1].removeprefix("unet.").removesuffix(".attn2") if names else str(node.name)


def _opset(model: onnx.ModelProto) -> int:
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def attention_weights(queries: Array, keys: Array, scale: float | None) -> Weights:
    """Compute softmax(queries keys^T * scale) (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
        queries: Queries [heads, q, head_size].
        keys: Keys [heads, k, head_size].
        scale: Scale of the products; None is 1 / sqrt(head_size).

    Returns:
        Weights [heads, q, k] float32; each row sums to 1.
    """
    factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    scaled = queries.astype(np.float32) * np.float32(factor)
    scores: Weights = np.matmul(scaled, keys.astype(np.float32).transpose(0, 2, 1), dtype=np.float32)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


class MarkedUnet(Engine):
    """The bundle's UNet as an engine of the denoising loop, which reports the weights of each cross-attention.

    Args:
        bundle: The bundle, whose weights are not verified here.
        threads: Number of threads.
        see: Called at each run with the index of the cross-attention and its weights [heads,q,k] for the last row of
            the batch, which is the prompt's.

    Raises:
        BundleError: The bundle has no UNet, or the UNet's graph has no Attention operator.
        BackendUnavailableError: onnx or ONNX Runtime is not installed.
        EngineError: The graph does not open.
    """

    def __init__(self, bundle: Bundle, threads: int, see: Callable[[int, Weights], None]) -> None:
        path = bundle.graph("unet")
        component = bundle.manifest.components["unet"]
        spec = EngineComponent(
            file=component.graph,
            weights=component.weights,
            precision=component.precision,
            inputs=component.inputs,
            outputs=component.outputs,
            batch=None,
            seconds=0,
            size_bytes=0,
            options={},
        )
        super().__init__("unet", spec)
        check_markable()
        import onnx
        import onnxruntime

        from sdrt.libraries.onnxruntime import ERRORS

        model = onnx.load(path, load_external_data=False)
        self.attentions = mark(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._errors, self._see = ERRORS, see
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise library_error(f"onnxruntime cannot open {path}", error) from error
        self._marks = list(dict.fromkeys(name for each in self.attentions for name in (each.queries, each.keys)))

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the graph, report every cross-attention, and return the UNet's own outputs."""
        wanted = [output.name for output in self.spec.outputs]
        try:
            values = self._session.run([*wanted, *self._marks], feeds)
        except self._errors as error:
            raise library_error("the marked unet failed", error) from error
        outputs = dict(zip([*wanted, *self._marks], values, strict=True))
        for index, each in enumerate(self.attentions):
            self._see(index, attention_weights(outputs[each.queries][-1], outputs[each.keys][-1], each.scale))
        return {name: outputs[name] for name in wanted}

    def release(self) -> None:
        """Close the session."""
        del self._session
