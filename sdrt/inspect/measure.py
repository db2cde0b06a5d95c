"""Times of a bundle's blocks: ONNX Runtime's profile of the optimised graph, summed by the module of each node."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Component, ComponentName
from sdrt.errors import BackendUnavailableError, ResourceError
from sdrt.files import TEMPORARY_HINT, disk_errors, temporary_folder
from sdrt.inspect.graph import block_path, load_graph
from sdrt.install_lines import extra_line
from sdrt.libraries.errors import library_error
from sdrt.machine.cpu import usable_cpus
from sdrt.progress import Progress

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    Stage = AbstractContextManager[Callable[[int], None]]

#: Suffix that ONNX Runtime adds to the name of a tensor whose layout it changes.
LAYOUT = "_nchwc"
KERNEL = "_kernel_time"
OPTIMISED = "optimised.onnx"
#: Weights of at least this size are stored outside the optimised graph's file, which is limited to 2 GiB.
OUTSIDE_FROM_BYTES = "1024"
MIDDLE_TIMESTEP = 500


def measure(bundle: Bundle, name: ComponentName, runs: int, progress: Progress) -> dict[str, float]:
    """Measure the seconds that one component takes for one sample, by the path of each operator's module.

    Operators that ONNX Runtime fused count for the module that outputs their result, and operators that it inserted for
    the module that uses theirs. The first of ``runs`` + 1 runs is a warm-up; of the others each operator's shortest
    time counts, which other processes disturbed least. The optimised graph and its weights are written to a temporary
    folder.

    Args:
        bundle: The bundle; its weights are checked against their digests first.
        name: The component's name.
        runs: Number of timed runs.
        progress: Progress callback; advances once per timed run.

    Raises:
        BackendUnavailableError: onnxruntime or onnx is not installed, or the profile does not match the optimised
            graph.
        BundleError, TrustError: The bundle has no such component, or a file changed since it was sealed.
        ResourceError: The temporary folder is full.
    """
    path = bundle.graph(name)
    bundle.verify_weights()
    component = bundle.component(name)
    files = [bundle.manifest.files[file] for file in (component.graph, component.weights) if file is not None]
    with temporary_folder() as folder, disk_errors(folder):
        _check_room(folder, sum(file.size_bytes for file in files))
        events = _record_profile(path, component, folder, runs, progress.stage(f"run {name}", runs))
        optimised = load_graph(folder / OPTIMISED)
    rows = _split_runs(events, optimised, runs)
    seconds: dict[str, float] = defaultdict(float)
    for module, *timed in zip(module_paths(name, load_graph(path), optimised), *rows, strict=True):
        seconds[module] += min(event["dur"] for event in timed) / 1e6
    return dict(seconds)


def _split_runs(events: list[dict[str, Any]], optimised: onnx.GraphProto, runs: int) -> list[list[dict[str, Any]]]:
    """Split events into runs, without the first; each run is in the order of the graph's nodes.

    Raises:
        BackendUnavailableError: The events do not match the graph's nodes.
    """
    operators = [node.op_type for node in optimised.node]
    size = len(operators)
    rows = [events[start : start + size] for start in range(0, len(events), size)]
    if len(rows) != runs + 1 or any([event["args"]["op_name"] for event in row] != operators for row in rows):
        hint = "leave out --measure; report this with ONNX Runtime's version"
        raise BackendUnavailableError("ONNX Runtime's profile does not match its optimised graph", hint=hint)
    return rows[1:]


def module_paths(name: str, original: onnx.GraphProto, optimised: onnx.GraphProto) -> list[str]:
    """Return the path of the module of each node in an optimised graph.

    A node whose name, or whose output, has the name of a node or of an output in the original belongs to the same
    module as that. Any other belongs to the module that uses its output first, or to "" if none does.

    Args:
        name: The component's name.
        original: The graph in the bundle.
        optimised: The graph that ONNX Runtime made of it.
    """
    paths = [block_path(name, node) for node in original.node]
    known: dict[str, str] = {}
    for node, path in zip(original.node, paths, strict=True):
        known |= dict.fromkeys((*node.output, node.name), path)
    users: dict[str, int] = {}
    for index in reversed(range(len(optimised.node))):
        users |= dict.fromkeys(optimised.node[index].input, index)
    found = [""] * len(optimised.node)
    for index in reversed(range(len(optimised.node))):
        node = optimised.node[index]
        names = [each.removesuffix(LAYOUT) for each in (node.name, *node.output) if each]
        used = [found[users[output]] for output in node.output if output in users]
        found[index] = next((known[each] for each in names if each in known), (used or [""])[0])
    return found


def _record_profile(path: Path, component: Component, folder: Path, runs: int, stage: Stage) -> list[dict[str, Any]]:
    """Return the events of all operators in ``runs`` + 1 runs, in order; write the optimised graph to the folder."""
    try:
        from sdrt.libraries.onnxruntime import ERRORS
    except ImportError as error:
        hint = extra_line("cpu")
        raise BackendUnavailableError("onnxruntime is needed for --measure and is not installed", hint=hint) from error
    feeds = _example_inputs(component)
    try:
        session = _open_profiling_session(path, folder)
        with stage as advance:
            session.run(None, feeds)
            for _ in range(runs):
                session.run(None, feeds)
                advance(1)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    except ERRORS as error:
        raise library_error(f"onnxruntime cannot run {path}", error) from error
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]


def _open_profiling_session(path: Path, folder: Path) -> onnxruntime.InferenceSession:
    """Open a session that records a profile and writes the optimised graph to the folder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a warning says that the optimised graph fits this machine only, where it stays
    options.intra_op_num_threads = usable_cpus()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / OPTIMISED)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", "optimised.data")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", OUTSIDE_FROM_BYTES)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Raise ResourceError if the folder has no room for the optimised graph; ONNX Runtime would not report it."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        message = f"{folder.parent} has {free_bytes >> 20} MiB free; measuring needs {needed_bytes >> 20} MiB"
        raise ResourceError(message, hint=TEMPORARY_HINT)


def _example_inputs(component: Component) -> dict[str, Any]:
    """Return random inputs for one sample: normal numbers, a timestep in the middle, token ids."""
    import numpy as np

    generator = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for spec in component.inputs:
        shape: Sequence[int] = [size if isinstance(size, int) else 1 for size in spec.shape]
        if spec.dtype == "int64":
            feeds[spec.name] = generator.integers(0, 1000, shape)
        elif spec.name == "timestep":
            feeds[spec.name] = np.full(shape, MIDDLE_TIMESTEP, spec.dtype)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds
