"""Write a bundle: trace, check, describe and seal each component of a checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from sdrt.bundle import (
    COMPONENTS,
    Bundle,
    CheckpointRecord,
    Component,
    ComponentName,
    Manifest,
    Precision,
    file_records,
    seal,
)
from sdrt.checkpoint import Checkpoint, tokenizer_json
from sdrt.errors import UsageError
from sdrt.export.check import check_graph
from sdrt.export.components import load_source, model_record
from sdrt.export.flops import count_flops
from sdrt.export.onnx_export import export_graph, quiet, tensor_specs
from sdrt.files import canonical_json, folder_published_as
from sdrt.progress import Progress, silent

DEFAULT_OPSET = 23
OPSETS = range(20, 25)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MADE_BY = ("sdrt", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision = "fp32",
    components: Sequence[ComponentName] = COMPONENTS,
    opset: int = DEFAULT_OPSET,
    progress: Progress = silent,
) -> Bundle:
    """Export a checkpoint to a bundle folder, published by one rename when it is whole.

    Every graph is checked by onnx and, numerically, against the torch module it came from (see ``check.TOLERANCES``)
    before the manifest is written. Equal checkpoints and versions give equal bytes, on any machine, in any folder.

    Args:
        checkpoint: What to export.
        out: The bundle's folder; replaced when it exists.
        precision: fp32, or fp16 by tracing the half module (timesteps stay fp32).
        components: Which ones.
        opset: ONNX opset; 23 keeps attention and group normalisation whole.
        progress: Told of every component.

    Raises:
        UsageError: A precision, component or opset that cannot be exported.
        CheckpointError: The weights are malformed.
        NumericError: A graph differs from its module.
        ResourceError: ``out`` cannot be written.
    """
    if precision not in DTYPES:
        raise UsageError(f"precision {precision} cannot be exported", hint=f"choose among {', '.join(DTYPES)}")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not in {OPSETS[0]}..{OPSETS[-1]}", hint=f"{DEFAULT_OPSET} is the default")
    if unknown := set(components) - set(COMPONENTS):
        raise UsageError(f"unknown component {min(unknown)}", hint=f"choose among {', '.join(COMPONENTS)}")
    if (named := checkpoint.scheduler.get("_class_name")) not in (None, "LMSDiscreteScheduler"):
        progress.note(f"the checkpoint names {named}; sdrt runs LMS over its betas, with linspace timesteps")
    with folder_published_as(out) as folder:
        described = {
            name: _export_component(checkpoint, name, folder, precision, opset, progress)
            for name in COMPONENTS
            if name in components
        }
        for name, data in (
            ("tokenizer/tokenizer.json", tokenizer_json(checkpoint)),
            ("scheduler/scheduler_config.json", canonical_json(checkpoint.scheduler)),
        ):
            (folder / name).parent.mkdir()
            (folder / name).write_bytes(data)
        manifest = Manifest(
            schema_version=1,
            checkpoint=CheckpointRecord(name=checkpoint.name, digest=checkpoint.digest, revision=checkpoint.revision),
            precision=precision,
            opset=opset,
            model=model_record(checkpoint),
            components=described,
            files=file_records(folder),
            versions={name: version(name) for name in MADE_BY},
        )
        seal(folder, manifest)
    return Bundle.open(out)


def _export_component(
    checkpoint: Checkpoint, name: ComponentName, folder: Path, precision: Precision, opset: int, progress: Progress
) -> Component:
    """Trace one component into ``folder``/<name>/, check it and describe it. Its weights are freed at the end."""
    with progress.stage(f"export {name}", 3) as advance, quiet():
        source = load_source(checkpoint, name)
        dtype = DTYPES[precision]
        source.module.to(dtype)
        advance(1)
        path = folder / name / "model.onnx"
        path.parent.mkdir()
        export_graph(source, path, dtype, opset)
        advance(1)
        check_graph(source, path, dtype, precision)
        inputs, outputs = tensor_specs(path)
        weights = path.with_name(f"{path.name}.data")
        described = Component(
            graph=path.relative_to(folder).as_posix(),
            weights=weights.relative_to(folder).as_posix() if weights.exists() else None,
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            parameters=sum(parameter.numel() for parameter in source.module.parameters()),
            flops=count_flops(source, dtype),
        )
        advance(1)
    del source
    gc.collect()
    return described
