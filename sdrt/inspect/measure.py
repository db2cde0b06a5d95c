"""How long each block of a bundle takes: ONNX Runtime's profile of its optimised graph, by the module of each node."""

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

#: What ONNX Runtime adds to the name of a tensor whose layout it changes.
LAYOUT = "_nchwc"
KERNEL = "_kernel_time"
OPTIMISED = "optimised.onnx"
#: Weights from this size on stay out of the optimised graph's file, which ends at 2 GiB.
OUTSIDE_FROM_BYTES = "1024"
MIDDLE_TIMESTEP = 500


def measure(bundle: Bundle, name: ComponentName, runs: int, progress: Progress) -> dict[str, float]:
    """Seconds that one component takes for one sample, by the module that each operator belongs to.

    What ONNX Runtime fused counts where its result is put out, and what it put in between counts where it leads to. The
    first of ``runs`` + 1 runs warms up; of the others each operator's shortest counts, which other processes disturbed
    least. The optimised graph and its weights are written to a temporary folder meanwhile.

    Args:
        bundle: Its weights are held against their digests before they are run.
        name: The component.
        runs: How often it is measured.
        progress: Told of the runs.

    Raises:
        BackendUnavailableError: onnxruntime or onnx is not installed, or ran other operators than it wrote.
        BundleError, TrustError: The bundle does not hold the component, or not as sealed.
        ResourceError: The temporary folder is full.
    """
    path = bundle.graph(name)
    bundle.verify_weights()
    component = bundle.component(name)
    files = [bundle.manifest.files[file] for file in (component.graph, component.weights) if file is not None]
    with temporary_folder() as folder, disk_errors(folder):
        _check_room(folder, sum(file.size_bytes for file in files))
        events = _profile(path, component, folder, runs, progress.stage(f"run {name}", runs))
        optimised = load_graph(folder / OPTIMISED)
    rows = _runs(events, optimised, runs)
    seconds: dict[str, float] = defaultdict(float)
    for module, *timed in zip(modules(name, load_graph(path), optimised), *rows, strict=True):
        seconds[module] += min(event["dur"] for event in timed) / 1e6
    return dict(seconds)


def _runs(events: list[dict[str, Any]], optimised: onnx.GraphProto, runs: int) -> list[list[dict[str, Any]]]:
    """The events of each run but the first, in the order of the graph's nodes.

    Raises:
        BackendUnavailableError: They are not those of its nodes.
    """
    operators = [node.op_type for node in optimised.node]
    size = len(operators)
    rows = [events[start : start + size] for start in range(0, len(events), size)]
    if len(rows) != runs + 1 or any([event["args"]["op_name"] for event in row] != operators for row in rows):
        hint = "leave out --measure; report this with ONNX Runtime's version"
        raise BackendUnavailableError("ONNX Runtime ran other operators than it wrote", hint=hint)
    return rows[1:]


def modules(name: str, original: onnx.GraphProto, optimised: onnx.GraphProto) -> list[str]:
    """The module that each node of an optimised graph belongs to, by the names that both graphs have.

    A node that has the name of one in the original, or of its result, belongs where that does; so does one that puts
    out a tensor of the original. Any other belongs to the module that uses its result first; "" where none does.
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


def _profile(path: Path, component: Component, folder: Path, runs: int, stage: Stage) -> list[dict[str, Any]]:
    """The events of every operator of ``runs`` + 1 runs, in order; writes the optimised graph into the folder."""
    try:
        from sdrt.libraries.onnxruntime import ERRORS
    except ImportError as error:
        hint = extra_line("cpu")
        raise BackendUnavailableError("onnxruntime, which measures, is not installed", hint=hint) from error
    feeds = _example(component)
    try:
        session = _session(path, folder)
        with stage as advance:
            session.run(None, feeds)
            for _ in range(runs):
                session.run(None, feeds)
                advance(1)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    except ERRORS as error:
        raise library_error(f"onnxruntime cannot run {path}", error) from error
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]


def _session(path: Path, folder: Path) -> onnxruntime.InferenceSession:
    """A session that profiles what it runs and writes what it makes of the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimised graph is for this machine, where it stays
    options.intra_op_num_threads = usable_cpus()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / OPTIMISED)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", "optimised.data")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", OUTSIDE_FROM_BYTES)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Hold that the optimised graph fits into the folder; ONNX Runtime does not say so where it does not.

    Raises:
        ResourceError: It does not.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        message = f"{folder.parent} has {free_bytes >> 20} MiB left; to measure takes {needed_bytes >> 20} MiB"
        raise ResourceError(message, hint=TEMPORARY_HINT)


def _example(component: Component) -> dict[str, Any]:
    """Inputs for one sample, as it meets them: normal numbers, a timestep in the middle, token ids."""
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
