"""Bisection of a graph: the first tensor inside it that differs from PyTorch's by more than the tolerance.

PyTorch's tensors are the inputs and outputs of the checkpoint's modules, recorded by hooks. The graph's are those of
the nodes that the exporter attributes to these modules. They are marked as outputs, half of the remaining range at a
time, so that the activations of a large network need not be in memory all at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName, ModelRecord
from sdrt.compare.metrics import broken, measure
from sdrt.compare.schema import ComponentResult, Departure, ToleranceRecord
from sdrt.errors import BackendUnavailableError
from sdrt.graphs.values import module_path
from sdrt.install_lines import requirement_line
from sdrt.machine.cpu import usable_cpus
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import available

if TYPE_CHECKING:
    import onnx
    import torch

    from sdrt.compare.inputs import Case
    from sdrt.compare.reference import Reference

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Probe:
    """A tensor of the graph, the node that computes it, and PyTorch's value of it."""

    tensor: str
    node: str
    operator: str
    module: str
    expected: Array


#: Yields each probe with the graph's value of it.
Run = Callable[[Sequence[Probe]], Iterator[tuple[Probe, Array]]]


@dataclass(frozen=True)
class Search:
    """Result of a bisection: the first tensor that departs, None if none does, and the number of tensors compared."""

    departure: Departure | None
    compared: int


def check_available() -> None:
    """Raise BackendUnavailableError unless onnx and onnxruntime, which bisection needs, are installed.

    Raises:
        BackendUnavailableError: onnx or onnxruntime is not installed.
    """
    available("onnxruntime")
    if importlib.util.find_spec("onnx") is None:
        hint = requirement_line("onnx", extra="export")
        raise BackendUnavailableError("onnx, which reads graphs, is not installed", hint=hint)


def locate(
    result: ComponentResult,
    reference: Reference,
    model: ModelRecord,
    bundle: Bundle | None,
    cases: Sequence[Case],
    progress: Progress = silent,
) -> ComponentResult:
    """Find the origin of a component's failure: its manifest, its graph, or the engine compiled from the graph.

    Args:
        result: Result of the failed component.
        reference: The checkpoint in PyTorch.
        model: Model record of the candidate's manifest.
        bundle: Bundle with the component's graph; None if only engines were given.
        cases: Inputs that the component was run on.
        progress: Progress callback; it also gets a note if there is no search.

    Returns:
        The result with its departure, or with a more detailed reason.

    Raises:
        BackendUnavailableError: onnx or onnxruntime is not installed.
    """
    said = [result.reason]
    given, right = model.scaling_factor, reference.model.scaling_factor
    if result.component == "vae_decoder" and given != right:
        said.append(f"the manifest's scaling_factor is {given:g}, the checkpoint's is {right:g}")
    departure = None
    failed = [(case, output) for case in result.cases for output in case.outputs if output.outcome == "failed"]
    if bundle is None or not failed:
        progress.note(f"{result.component} is not bisected: this needs its bundle, and outputs that failed")
    else:
        feeds = next(case.feeds for case in cases if case.label == failed[0][0].label)
        with progress.stage(f"bisect {result.component}"):
            search = find_departure(reference, bundle, result.component, feeds, failed[0][1].tolerance)
        departure = search.departure
        if not search.compared:
            said.append("its graph has no tensor to compare with PyTorch")
        elif departure is None and len(said) == 1:
            said.append("its graph agrees with PyTorch; the engine compiled from it does not")
    return result.model_copy(update={"reason": "; ".join(said), "departure": departure})


def find_departure(
    reference: Reference, bundle: Bundle, component: ComponentName, feeds: Feeds, tolerance: ToleranceRecord | None
) -> Search:
    """Find the first tensor of a component's graph, in the order of computation, that breaks a tolerance.

    Args:
        reference: The checkpoint in PyTorch.
        bundle: Bundle with the graph, which ONNX Runtime runs unoptimised on the CPU.
        component: Name of the component.
        feeds: Inputs of one case, by name.
        tolerance: The component's tolerance; errors within it count as rounding. If None, only NaN, Inf and an
            output of another shape depart.

    Raises:
        BackendUnavailableError: onnx or onnxruntime is not installed.
    """
    check_available()
    model = _load(bundle.graph(component))
    outputs = {spec.name for spec in bundle.manifest.components[component].outputs}
    expected, inside = _reference_tensors(reference, component, feeds)
    probes = _probes(model, expected, inside)
    if not probes:
        return Search(None, 0)
    run = _runner(model, bundle.graph(component).parent, bundle, component, feeds)
    if component == "denoise_step":
        run = _for_both_halves(run)
    first, end = 0, len(probes)
    while end - first > 1:
        middle = (first + end) // 2
        if any(_departs(probe, found, tolerance, outputs) for probe, found in run(probes[first:middle])):
            end = middle
        else:
            first = middle
    (probe, found), *_ = run(probes[first:end])
    departs = _departs(probe, found, tolerance, outputs)
    return Search(_departure(probe, found) if departs else None, len(probes))


def _for_both_halves(run: Run) -> Run:
    """Return a run that repeats what the step computes once for both guidance halves (docs/decisions/0055).

    PyTorch computes them for each half, so a value that depends on the half but was computed once departs.
    """

    def doubled(probes: Sequence[Probe]) -> Iterator[tuple[Probe, Array]]:
        for probe, found in run(probes):
            once = found.ndim > 0 and probe.expected.shape == (2 * len(found), *found.shape[1:])
            yield probe, np.concatenate([found, found]) if once else found

    return doubled


def _departure(probe: Probe, found: Array) -> Departure:
    metrics, _ = measure(found, probe.expected)
    return Departure(
        tensor=probe.tensor,
        node=probe.node,
        operator=probe.operator,
        source_module=probe.module,
        metrics=metrics,
    )


def _departs(probe: Probe, found: Array, tolerance: ToleranceRecord | None, outputs: Collection[str]) -> bool:
    """Return whether a tensor breaks the tolerance.

    Inside the graph, a tensor of another shape is not the module's output, so it is ignored. An output of the contract
    has a fixed shape, so another shape departs.
    """
    if found.shape != probe.expected.shape:
        return probe.tensor in outputs
    metrics, _ = measure(found, probe.expected)
    return metrics is None or bool(broken(metrics, tolerance))


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _reference_tensors(
    reference: Reference, component: ComponentName, feeds: Feeds
) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """Return PyTorch's tensors by their names in the graph, and (input, output) of each leaf module by its path."""
    import torch

    from sdrt.compare.reference import guided_step

    module = reference.source(component).module

    def run(inputs: Feeds) -> Array:
        with torch.no_grad():
            output: Array = module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
        return output

    with _watched(module) as inside:
        if component == "denoise_step":
            expected = guided_step(run, feeds, reference.checkpoint.scheduler)
        else:
            expected = {reference.source(component).output[0]: run(feeds)}
    return expected, inside


@contextmanager
def _watched(module: torch.nn.Module) -> Iterator[dict[str, tuple[Array, Array]]]:
    """Record input and output of every leaf module that is called exactly once in the block, by its path."""
    import torch

    kept: dict[str, tuple[Array, Array]] = {}
    calls: dict[str, int] = {}

    def watcher(path: str) -> Callable[[torch.nn.Module, tuple[object, ...], object], None]:
        def watch(_module: torch.nn.Module, inputs: tuple[object, ...], output: object) -> None:
            calls[path] = calls.get(path, 0) + 1
            given = next((value for value in inputs if isinstance(value, torch.Tensor)), None)
            if given is not None and isinstance(output, torch.Tensor) and output.is_floating_point():
                kept[path] = (given.detach().float().numpy().copy(), output.detach().float().numpy().copy())

        return watch

    # A module shared by several parents is called more than once and has no single path.
    hooks = [
        part.register_forward_hook(watcher(path))
        for path, part in module.named_modules()
        if path and not any(part.children())
    ]
    try:
        yield kept
        for path, count in calls.items():
            if count > 1:
                kept.pop(path, None)
    finally:
        for hook in hooks:
            hook.remove()


def _probes(
    model: onnx.ModelProto, expected: Mapping[str, Array], inside: Mapping[str, tuple[Array, Array]]
) -> list[Probe]:
    """Return the tensors that both the graph and PyTorch have, in the graph's order of computation."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    order = {output: index for index, output in enumerate(made_by)}
    by_module: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        by_module.setdefault(module_path(node), []).append(node)
    wanted = dict(expected)
    for path, nodes in by_module.items():
        if path in inside:
            before, after = inside[path]
            wanted.setdefault(nodes[0].input[0], before)
            wanted.setdefault(nodes[-1].output[0], after)
    return [
        Probe(name, made_by[name].name, made_by[name].op_type, module_path(made_by[name]), wanted[name])
        for name in sorted(wanted.keys() & made_by.keys(), key=order.__getitem__)
    ]


def _runner(model: onnx.ModelProto, folder: Path, bundle: Bundle, component: ComponentName, feeds: Feeds) -> Run:
    """Return a function that runs the graph with the probes marked as outputs."""
    import onnx
    import onnxruntime

    dtypes = {spec.name: spec.dtype for spec in bundle.manifest.components[component].inputs}
    inputs = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
    types = {value.name: value for value in model.graph.value_info}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cpus()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))

    def run(probes: Sequence[Probe]) -> Iterator[tuple[Probe, Array]]:
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        known = {output.name for output in marked.graph.output}
        for probe in probes:
            if probe.tensor not in known:
                plain = onnx.helper.make_empty_tensor_value_info(probe.tensor)
                marked.graph.output.append(types.get(probe.tensor, plain))
        session = onnxruntime.InferenceSession(marked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run([probe.tensor for probe in probes], inputs)
        for probe, array in zip(probes, found, strict=True):
            yield probe, np.asarray(array).astype(np.float32, copy=False)

    return run
