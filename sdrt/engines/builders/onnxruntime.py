"""The builder of ONNX Runtime: for the CPU it saves the optimised graph, for a GPU a rewritten one."""

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
# Smallest growth of a file on disk.
BLOCK_BYTES = 4096


class OnnxRuntimeBuilder(Builder):
    """The builder of ONNX Runtime: saves the graphs that its optimiser writes.

    All optimisations are on: blocked layouts tie the set to the processor, but save a seventh of the time
    (docs/decisions/0010).
    """

    backend = "onnxruntime"
    version = 1
    precisions = ("fp32",)

    def library_versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime."""
        return {"onnxruntime": installed_version("onnxruntime")}

    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """Return the processor's architecture and vector width, which the layout of the weights depends on."""
        return {"machine": platform.machine(), "simd": simd_width()}

    def options(self, component: ComponentName, provider: Provider = "cpu") -> dict[str, str]:
        """Return the provider and the opset of its graphs; an empty dict for the CPU."""
        return {} if provider == "cpu" else {"provider": provider, "opset": str(OPSET)}

    def compile(self, job: ComponentJob, folder: Path) -> Compiled:
        """Write the optimised graph, with large weights in a file beside it."""
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
        # The session computes nothing: its weights need not be packed.
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            with disk_errors(folder):
                onnxruntime.InferenceSession(job.graph, options, providers=["CPUExecutionProvider"])
        except ERRORS as error:
            # The message does not tell if the disk was full.
            _check_room(folder, job.source_bytes)
            raise library_error(f"onnxruntime cannot compile {job.graph}", error) from error
        return Compiled(GRAPH, WEIGHTS if (folder / WEIGHTS).exists() else None)


def _rewritten(job: ComponentJob, folder: Path) -> Compiled:
    """Write the graph for GPU providers, which optimise it when they open it, and copy the weights."""
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
    """Raise ResourceError unless files in a folder can grow and a new file of this size fits, by disk and limits."""
    with disk_errors(folder):
        for path in folder.iterdir():
            with path.open("ab") as written:
                os.posix_fallocate(written.fileno(), path.stat().st_size, BLOCK_BYTES)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
