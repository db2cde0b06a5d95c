"""Which modules of a UNet stand int8 least for the work that they are: those that are kept where a test asks for it.

Faults of rounding are small and independent, so that their squares add up: on the demo those of 162 products, each
rounded alone, add up to 0.49 where all together give 0.51 (docs/decisions/0057). What a module costs is then known from
one run with it alone rounded, of a graph in which each product's input is rounded or not as an input of the graph says.
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

#: The graph's further input: for each of its products, in order, whether its input is rounded.
ROUNDED = "sensitivity.rounded"


@dataclass(frozen=True)
class Sensitivity:
    """A module's path, the sum of its steps' squared faults where it alone is rounded, and its products' FLOPs."""

    module: str
    fault: float
    flops: int


def by_sensitivity(
    source: Path, ranges: Mapping[str, tuple[float, float]], steps: Sequence[Pass], progress: Progress
) -> list[Sensitivity]:
    """The modules that hold products, those with the largest fault a FLOP first.

    Only inputs are rounded: weights alone give 0.04 where all of the demo's fault is 0.51.

    Args:
        source: The UNet's graph in fp32, its weights beside it.
        ranges: Least and largest value of the first input of each of its products.
        steps: Those on which they are tried.
        progress: Told of every run.

    Raises:
        BackendUnavailableError: onnxruntime is not installed.
    """
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    found = products(model.graph)
    modules: dict[str, list[int]] = {}
    for index, node in enumerate(found):
        modules.setdefault(module_of(node), []).append(index)
    # A product that says no module cannot be named as kept.
    modules.pop("", None)
    flops = {name: count_flops(model.graph, [found[index] for index in held]) for name, held in modules.items()}
    _switch(model.graph, found, ranges)
    session = open_cpu_session(model.SerializeToString(), weights_folder=source.parent)
    sensitivities = []
    with progress.stage("find what int8 costs", len(modules) * len(steps)) as advance:
        for name, held in modules.items():
            rounded = np.isin(np.arange(len(found)), held)
            total = 0.0
            for made in steps:
                total += made.fault(session.run(None, {**made.feeds, ROUNDED: rounded})[0]) ** 2
                advance(1)
            sensitivities.append(Sensitivity(name, total, flops[name]))
    return sorted(sensitivities, key=lambda one: one.fault / max(one.flops, 1), reverse=True)


def to_keep(sensitivities: Sequence[Sensitivity], share: float) -> tuple[str, ...]:
    """As many of the first modules as leave at most a share of the fault of all (its length, not its square)."""
    left = sum(one.fault for one in sensitivities)
    bound = left * share**2
    kept = []
    for one in sensitivities:
        if left <= bound:
            break
        kept.append(one.module)
        left -= one.fault
    return tuple(kept)


def _switch(
    graph: onnx.GraphProto, chosen: Sequence[onnx.NodeProto], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Let `ROUNDED` say whose input is rounded to its grid."""
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
