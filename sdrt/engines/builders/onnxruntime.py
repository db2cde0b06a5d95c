"""ONNX Runtime: for the CPU the optimised graph, so that opening it optimises nothing; for a GPU a rewritten one."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from sdrt.artefacts.engine_set import Provider
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines.builders.base import Builder, Compiled, ComponentJob
from sdrt.engines.builders.onnxruntime_gpu import OPSET, gpu_graph
from sdrt.engines.recipe import Recipe
from sdrt.files import disk_errors
from sdrt.libraries.errors import library_error
from sdrt.machine.cpu import simd_width
from sdrt.machine.packages import installed_version

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
# Above this many bytes an initializer goes to the weights file, which is mapped rather than read.
EXTERNAL_BYTES = 1024
# The least that a file on a disk grows by.
BLOCK_BYTES = 4096


class OnnxRuntimeBuilder(Builder):
    """Saves what ONNX Runtime's optimiser makes of each graph.

    All of it: the blocked layouts depend on the processor, and so does the set, but they are worth a seventh of the
    time (docs/decisions/0010).
    """

    backend = "onnxruntime"
    version = 1
    precisions = ("fp32",)

    def library_versions(self) -> dict[str, str]:
        """ONNX Runtime's version."""
        return {"onnxruntime": installed_version("onnxruntime")}

    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """The processor's kind and vector width: weights are blocked for it, and another would read them wrongly."""
        return {"machine": platform.machine(), "simd": simd_width()}

    def options(self, component: ComponentName, provider: Provider = "cpu") -> dict[str, str]:
        """Return the provider and the opset of its graphs; nothing for the CPU."""
        return {} if provider == "cpu" else {"provider": provider, "opset": str(OPSET)}

    def compile(self, job: ComponentJob, folder: Path) -> Compiled:
        """Save the optimised graph, large weights beside it."""
        if "provider" in job.options:
            return _rewritten(job, folder)
        import onnxruntime

        from sdrt.libraries.onnxruntime import ERRORS

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = job.threads
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / GRAPH)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_BYTES)
        )
        # The session is thrown away: weights need not be packed for products that it will not compute.
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            with disk_errors(folder):
                onnxruntime.InferenceSession(job.graph, options, providers=["CPUExecutionProvider"])
        except ERRORS as error:
            # Its message does not say so when the disk was the reason.
            _check_room(folder, job.source_bytes)
            raise library_error(f"onnxruntime cannot compile {job.graph}", error) from error
        return Compiled(GRAPH, WEIGHTS if (folder / WEIGHTS).exists() else None)


def _rewritten(job: ComponentJob, folder: Path) -> Compiled:
    """Write the graph that GPU providers take, which they optimise when it is opened, and the weights as they are."""
    model = gpu_graph(job.graph)
    with disk_errors(folder):
        (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
        if job.spec.weights is None:
            return Compiled(GRAPH)
        # The graph refers to its weights by this name.
        weights = Path(job.spec.weights).name
        shutil.copyfile(job.graph.with_name(weights), folder / weights)
    return Compiled(GRAPH, weights)


def _check_room(folder: Path, size_bytes: int) -> None:
    """Hold that what is in a folder can grow, and that a file of this size has room beside it: by disk and limits."""
    with disk_errors(folder):
        for path in folder.iterdir():
            with path.open("ab") as written:
                os.posix_fallocate(written.fileno(), path.stat().st_size, BLOCK_BYTES)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
