"""OpenVINO on the CPU: the compiled model, exported as one blob."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.bundle import ComponentName, Precision
from sdrt.engines.builders.base import Builder, Compiled, ComponentJob
from sdrt.engines.recipe import Recipe
from sdrt.engines.self_test import self_test
from sdrt.errors import BackendUnavailableError
from sdrt.files import disk_errors
from sdrt.runtime.backends.base import library_error
from sdrt.runtime.backends.cpu import cpu_features, supports_bf16
from sdrt.runtime.backends.openvino import core, cpu_config
from sdrt.runtime.backends.packages import installed_version

if TYPE_CHECKING:
    import openvino

BLOB = "model.blob"


class OpenVinoBuilder(Builder):
    """Compiles each graph for this processor, with the batch free unless one number of pictures is asked for."""

    backend = "openvino"
    version = 1
    precisions = ("fp32", "bf16", "int8")

    def library_versions(self) -> dict[str, str]:
        """OpenVINO's version."""
        return {"openvino": installed_version("openvino")}

    def host(self, recipe: Recipe | None = None) -> dict[str, str]:
        """The processor's kind and instruction sets."""
        return {"machine": platform.machine(), "cpu_features": " ".join(cpu_features())}

    def default_precision(self) -> Precision:
        """Precision bf16 where the processor computes in it, else fp32."""
        return "bf16" if supports_bf16() else "fp32"

    def precision(self, asked: Precision | None, exported: Precision = "fp32") -> Precision:
        """The precision to build in; bf16 is refused where it would be emulated."""
        if asked == "bf16" and not supports_bf16():
            hint = "ask for fp32"
            raise BackendUnavailableError("this processor has neither AMX nor AVX512-BF16 for bf16", hint=hint)
        return super().precision(asked, exported)

    def component_precision(
        self, component: ComponentName, precision: Precision, exported: Precision = "fp32"
    ) -> Precision:
        """The text encoder computes in fp32 always: it runs once, and bf16 saves no time (docs/decisions/0011).

        In a set in int8 the VAE computes as it would without.
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
    """What a compiled graph gives, by name."""
    return {output.any_name: value for output, value in compiled(feeds).items()}


def _fix_batch(model: openvino.Model, batch: int) -> None:
    """Give every input's first axis one length."""
    model.reshape({node.any_name: [batch, *list(node.partial_shape)[1:]] for node in model.inputs})
