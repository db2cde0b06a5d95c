"""The builder of OpenVINO on the CPU: it exports the compiled model as one blob."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.artefacts.manifest import DEEPCACHE, ComponentName, Precision
from sdrt.engines.builders.base import Builder, Compiled, ComponentJob
from sdrt.engines.builders.openvino_fp32 import KEPT, keep_last_layers, keep_timestep
from sdrt.engines.recipe import Recipe
from sdrt.engines.self_test import self_test
from sdrt.errors import BackendUnavailableError
from sdrt.files import disk_errors
from sdrt.libraries.errors import library_error
from sdrt.libraries.openvino import INFERENCE_PRECISION, core, cpu_config, inference_precision, load_library
from sdrt.machine.cpu import cpu_features, supports_bf16
from sdrt.machine.packages import installed_version

if TYPE_CHECKING:
    import openvino

BLOB = "model.blob"
#: Components that end like a UNet. The error of bf16 in a VAE's picture is not multiplied by guidance and sigma.
UNETS: tuple[ComponentName, ...] = ("unet", "denoise_step", *DEEPCACHE)
#: Added to an fp32 number's bits, it carries into the upper half where the lower one is above a half.
BELOW_HALF = 0x7FFF


class OpenVinoBuilder(Builder):
    """The builder of OpenVINO: compiles for this processor, with a free batch unless pictures are fixed."""

    backend = "openvino"
    version = 4
    precisions = ("fp32", "bf16", "int8")

    def library_versions(self) -> dict[str, str]:
        """Return the version of OpenVINO."""
        return {"openvino": installed_version("openvino")}

    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """Return the processor's architecture and instruction sets."""
        return {"machine": platform.machine(), "cpu_features": " ".join(cpu_features())}

    def default_precision(self) -> Precision:
        """Return bf16 if the processor computes in it, else fp32."""
        return "bf16" if supports_bf16() else "fp32"

    def precision(self, requested: Precision | None, exported: Precision = "fp32") -> Precision:
        """Return the precision to build in; raise BackendUnavailableError for bf16 that would be emulated."""
        if requested == "bf16" and not supports_bf16():
            hint = "use --precision fp32"
            raise BackendUnavailableError("this processor has neither AMX nor AVX512-BF16 for bf16", hint=hint)
        return super().precision(requested, exported)

    def component_precision(
        self, component: ComponentName, precision: Precision, exported: Precision = "fp32"
    ) -> Precision:
        """Return the precision of a component.

        The text encoder computes in fp32: it runs once, and bf16 saves no time (docs/decisions/0011). In an int8 set
        the VAE computes in the default precision.
        """
        if component == "text_encoder":
            return "fp32"
        return self.default_precision() if precision == "int8" and exported != "int8" else precision

    def compile(self, job: ComponentJob, folder: Path) -> Compiled:
        """Write the compiled model, weights included, as one blob."""
        try:
            model = core().read_model(job.graph)
            if job.batch is not None and job.batch.min == job.batch.max:
                _fix_batch(model, job.batch.min)
            if inference_precision(job.precision) == INFERENCE_PRECISION["bf16"]:
                keep_timestep(model)
                if job.component in UNETS:
                    keep_last_layers(model)
                _round_weights(model)
            compiled = core().compile_model(model, "CPU", cpu_config(job.precision, job.threads))
            if job.precision == "int8":
                self_test(job.graph, job.component, lambda feeds: _run(compiled, feeds), job.batch)
        except (RuntimeError, MemoryError) as error:
            raise library_error(f"openvino cannot compile {job.graph}", error) from error
        blob = compiled.export_model()
        with disk_errors(folder):
            (folder / BLOB).write_bytes(blob.getbuffer())
        return Compiled(BLOB)


def _run(compiled: openvino.CompiledModel, feeds: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of a compiled graph by name."""
    return {output.any_name: value for output, value in compiled(feeds).items()}


def _round_weights(model: openvino.Model) -> None:
    """Round the weights of matrix products and convolutions to bf16, which halves the blob.

    OpenVINO computes these in bf16 in any case, and rounds in the same way (to nearest, ties to even): outputs are
    bit-identical. Norms, biases, the timestep's frequencies and layers kept in fp32 are unchanged.
    """
    openvino = load_library()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        readers = list(node.output(0).get_target_inputs())
        if len(node.shape) < 2 or not all(_computed_in_bf16(one.get_node()) for one in readers):
            continue
        bits = np.ascontiguousarray(node.data).view(np.uint32)
        rounded = (bits + (BELOW_HALF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        held = openvino.opset13.constant(rounded, dtype=openvino.Type.bf16)
        widened = openvino.opset13.convert(held, "f32")
        # Without this mark OpenVINO widens the weights when it compiles, and the blob is as large as before.
        widened.get_rt_info()["decompression_0"] = ""
        for reader in readers:
            reader.replace_source_output(widened.output(0))


def _computed_in_bf16(node: openvino.Node) -> bool:
    return node.get_type_name() in ("MatMul", "Convolution") and node.get_friendly_name() != KEPT


def _fix_batch(model: openvino.Model, batch: int) -> None:
    """Set the length of every input's first axis."""
    model.reshape({node.any_name: [batch, *list(node.partial_shape)[1:]] for node in model.inputs})
