"""Optimisation profiles: the shapes that an engine takes, checked against the graph before TensorRT reads them.

TensorRT's own checks are late or absent: min above opt passes set_shape, and a profile that does not fit shows as -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import ComponentName, TensorSpec
from sdrt.errors import EngineError, UsageError
from sdrt.libraries.tensorrt_log import Messages

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

Shape = tuple[int, ...]
#: Length of a dynamic axis in a network.
DYNAMIC = -1


def add_profile(
    builder: rtx.Builder,
    config: rtx.IBuilderConfig,
    network: rtx.INetworkDefinition,
    component: ComponentName,
    inputs: Sequence[TensorSpec],
    batch: BatchRange,
    messages: Messages,
) -> None:
    """Add the profile of a component to a build's configuration.

    Raises:
        EngineError: The network's inputs are not the component's, or TensorRT refuses the profile.
        UsageError: The batch is outside the graph's shape.
    """
    profile = builder.create_optimization_profile()
    graph = {tensor.name: tuple(tensor.shape) for tensor in _inputs(network)}
    wanted = {spec.name: spec for spec in inputs}
    if graph.keys() != wanted.keys():
        raise EngineError(
            f"{component}: the graph takes {', '.join(sorted(graph))}, its manifest says {', '.join(sorted(wanted))}",
            hint="export the checkpoint again",
        )
    for name, spec in wanted.items():
        shapes = profile_shapes(component, spec, graph[name], batch)
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        hint = "check the recipe's batch"
        raise EngineError(f"{component}: TensorRT refuses the profile {batch}: {messages.tail()}", hint=hint)


def profile_shapes(
    component: ComponentName, spec: TensorSpec, graph: Shape, batch: BatchRange
) -> tuple[Shape, Shape, Shape]:
    """Return an input's smallest, best and largest shape.

    Args:
        component: Name for error messages.
        spec: Input; its dynamic axes have names.
        graph: Shape of the input in the network; -1 is a dynamic axis.
        batch: Rows of the axis "batch".

    Raises:
        EngineError: The shapes of graph and spec differ.
        UsageError: The rows do not rise, or the graph's batch is fixed at another number.
    """
    where = f"{component}: input {spec.name}"
    if not 1 <= batch.min <= batch.opt <= batch.max:
        hint = "give MIN:OPT:MAX that rise from 1"
        raise UsageError(f"{where}: batch {batch.min}:{batch.opt}:{batch.max} does not rise", hint=hint)
    if len(graph) != len(spec.shape):
        raise EngineError(f"{where} has rank {len(graph)}, its manifest says {spec.shape}", hint="export again")
    for length, axis in zip(graph, spec.shape, strict=True):
        if isinstance(axis, int):
            if length != axis:
                raise EngineError(f"{where} has shape {graph}, its manifest says {spec.shape}", hint="export again")
        elif length not in (DYNAMIC, batch.min) or (length != DYNAMIC and batch.min != batch.max):
            hint = f"use {axis} {length}, or export a graph whose {axis} is dynamic"
            requested = f"{batch.min}:{batch.opt}:{batch.max}"
            raise UsageError(f"{where} has {axis} {length} in the graph; {requested} is outside it", hint=hint)
    least, best, largest = (
        tuple(rows if isinstance(axis, str) else axis for axis in spec.shape)
        for rows in (batch.min, batch.opt, batch.max)
    )
    return least, best, largest


def _inputs(network: rtx.INetworkDefinition) -> list[rtx.ITensor]:
    return [network.get_input(index) for index in range(network.num_inputs)]
