"""Rank a UNet's modules by their int8 error per FLOP; the worst can then stay in fp32.

Rounding errors are small and independent, so their squares add up: on the demo those of 162 products, each rounded
alone, combine to 0.49, and rounding all together gives 0.51 (docs/decisions/0057). One run with a module alone rounded
is thus enough to know its error. The graph gets an input that switches the rounding of each product on or off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdrt.export.calibration import Pass
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.quantise import module_of, products, rounding
from sdrt.export.shared_prefix import count_flops
from sdrt.progress import Progress

if TYPE_CHECKING:
    import onnx

#: Additional input of the graph: a bool per product, in order; True rounds the product's input.
ROUNDED = "sensitivity.rounded"


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a module to int8.

    Attributes:
        module: The module's path.
        squared_error: Sum over steps of the squared error with this module alone rounded.
        flops: FLOPs of its products.
    """

    module: str
    squared_error: float
    flops: int


def by_sensitivity(
    source: Path, ranges: Mapping[str, tuple[float, float]], steps: Sequence[Pass], progress: Progress
) -> list[Sensitivity]:
    """Rank the modules that have products, largest error per FLOP first.

    Only inputs are rounded: rounding the weights contributes 0.04 to the demo's total error of 0.51.

    Args:
        source: The UNet's graph in fp32, with its weights file beside it.
        ranges: Minimum and maximum by tensor, for the first input of each product.
        steps: Steps on which each module is tested.
        progress: Progress callback; advances once per run.

    Raises:
        BackendUnavailableError: onnxruntime is not installed.
    """
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    found = products(model.graph)
    modules: dict[str, list[int]] = {}
    for index, node in enumerate(found):
        modules.setdefault(module_of(node), []).append(index)
    # A product without a module path cannot be kept by name.
    modules.pop("", None)
    flops = {name: count_flops(model.graph, [found[index] for index in held]) for name, held in modules.items()}
    _switch(model.graph, found, ranges)
    session = open_cpu_session(model.SerializeToString(), weights_folder=source.parent)
    sensitivities = []
    with progress.stage("measure int8 errors by module", len(modules) * len(steps)) as advance:
        for name, held in modules.items():
            rounded = np.isin(np.arange(len(found)), held)
            total = 0.0
            for made in steps:
                total += made.error(session.run(None, {**made.feeds, ROUNDED: rounded})[0]) ** 2
                advance(1)
            sensitivities.append(Sensitivity(name, total, flops[name]))
    return sorted(sensitivities, key=lambda one: one.squared_error / max(one.flops, 1), reverse=True)


def to_keep(sensitivities: Sequence[Sensitivity], share: float) -> tuple[str, ...]:
    """Return the first modules, as few as leave at most a share of the total error.

    Args:
        sensitivities: Modules, the first to keep first.
        share: Allowed error of the others, relative to that of all modules; errors are root sums of squares.
    """
    left = sum(one.squared_error for one in sensitivities)
    bound = left * share**2
    kept = []
    for one in sensitivities:
        if left <= bound:
            break
        kept.append(one.module)
        left -= one.squared_error
    return tuple(kept)


def _switch(
    graph: onnx.GraphProto, chosen: Sequence[onnx.NodeProto], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Add the input `ROUNDED` to the graph, which switches the rounding of each product's input, in place."""
    import onnx

    helper, switches = onnx.helper, [f"{ROUNDED}.{index}" for index in range(len(chosen))]
    graph.input.append(helper.make_tensor_value_info(ROUNDED, onnx.TensorProto.BOOL, [len(chosen)]))
    places = {node.output[0]: index for index, node in enumerate(chosen)}
    nodes = [helper.make_node("Split", [ROUNDED], switches, axis=0, num_outputs=len(chosen))]
    rounded: dict[str, str] = {}
    for node in graph.node:
        if node.output[0] in places:
            value, index = node.input[0], places[node.output[0]]
            if value not in rounded:
                pair, constants = rounding(value, ranges[value])
                nodes += pair
                graph.initializer.extend(constants)
                rounded[value] = pair[-1].output[0]
            node.input[0] = f"{ROUNDED}.{index}.input"
            nodes.append(helper.make_node("Where", [switches[index], rounded[value], value], [node.input[0]]))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
