"""Export a checkpoint to a bundle: trace, check and describe each component, then seal the folder."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import (
    COMPONENTS,
    CheckpointRecord,
    Component,
    ComponentName,
    Manifest,
    Precision,
    check_token_merging,
    file_records,
    seal,
)
from sdrt.checkpoint import Checkpoint, tokenizer_json
from sdrt.errors import UsageError
from sdrt.export.activations import FP16_MAX, measure_activations
from sdrt.export.check import check_denoise_step, check_graph
from sdrt.export.components import TorchComponent, load_component, model_record
from sdrt.export.denoise_step import describe, write_denoise_step
from sdrt.export.flops import count_flops
from sdrt.export.onnx_export import export_graph, quiet, tensor_specs
from sdrt.files import canonical_json, folder_published_as, utf8_path
from sdrt.graphs.structure import OPSETS
from sdrt.progress import Progress, silent
from sdrt.sampling.lms import Schedule
from sdrt.sampling.noise_config import PredictionType

DEFAULT_OPSET = 23

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TOKENIZER = "tokenizer/tokenizer.json"
SCHEDULER = "scheduler/scheduler_config.json"
MADE_BY = ("sdrt", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision = "fp32",
    components: Sequence[ComponentName] = COMPONENTS,
    opset: int = DEFAULT_OPSET,
    token_merging: float | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Export a checkpoint to a bundle folder, published by one rename when it is whole.

    Every graph is checked by onnx and, numerically, against its torch module (see ``check.TOLERANCES``) before the
    manifest is written. With the UNet comes ``denoise_step``, the whole guided step composed around its graph over the
    same weights. Equal checkpoints and versions give equal bytes, on any machine, in any folder.

    Args:
        checkpoint: The checkpoint to export.
        out: The bundle's folder; replaced if it exists.
        precision: fp32, or fp16 by tracing the module in half precision (timesteps stay fp32). A component whose
            activations overflow fp16 on real latents stays fp32, and ``progress`` is notified.
        components: Names of the components to export.
        opset: ONNX opset; 23 keeps attention and normalisation whole.
        token_merging: Share of tokens that the UNet merges, above 0 and up to 0.75; None merges none. The graph is then
            checked against the merging module, whose output differs from the checkpoint's own.
        progress: Progress callback; one stage per component.

    Raises:
        UsageError: The precision, a component, the opset or the share of tokens cannot be exported.
        CheckpointError: The weights are malformed, or the UNet has no tokens to merge.
        ArtefactError: The scheduler's config has settings that LMS does not support.
        NumericError: A graph's output differs from its module's.
        ResourceError: ``out`` cannot be written.
    """
    _check_options(precision, components, opset, token_merging)
    prediction_type = _prediction_type(checkpoint, progress)
    _pass_on_notes(checkpoint, progress)
    with folder_published_as(out) as published, utf8_path(published) as folder:
        _write_settings(checkpoint, folder)
        names = [name for name in COMPONENTS if name in components]
        plans = _choose_precisions(checkpoint, folder / TOKENIZER, names, precision, progress)
        described: dict[ComponentName, Component] = {}
        for name in names:
            load = partial(load_component, checkpoint, name, token_merging)
            described[name] = _export_component(load, name, folder, plans[name], opset, progress)
            if name == "unet":
                described["denoise_step"] = _export_step(described[name], folder, prediction_type, progress)
        manifest = Manifest(
            schema_version=1,
            checkpoint=_checkpoint_record(checkpoint),
            precision=precision,
            opset=opset,
            model=model_record(checkpoint),
            components=described,
            files=file_records(folder),
            versions={package: version(package) for package in MADE_BY},
            token_merging=token_merging,
        )
        seal(folder, manifest)
    return Bundle.open(out)


def _pass_on_notes(checkpoint: Checkpoint, progress: Progress) -> None:
    for note in checkpoint.notes:
        progress.note(note)


def _checkpoint_record(checkpoint: Checkpoint) -> CheckpointRecord:
    return CheckpointRecord(
        name=checkpoint.name, digest=checkpoint.digest, revision=checkpoint.revision, variant=checkpoint.variant
    )


def _prediction_type(checkpoint: Checkpoint, progress: Progress) -> PredictionType:
    """Return what the UNet predicts, and notify ``progress`` if the checkpoint's scheduler is not LMS.

    Raises:
        ArtefactError: The scheduler's config has settings that LMS does not support.
    """
    if (named := checkpoint.scheduler.get("_class_name")) not in (None, "LMSDiscreteScheduler"):
        progress.note(f"the checkpoint's scheduler is {named}; sdrt uses LMS with its betas and linspace timesteps")
    return Schedule.from_config(checkpoint.scheduler, 1).prediction_type


def _write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write tokenizer.json and scheduler_config.json, each into its own folder."""
    for name, data in ((TOKENIZER, tokenizer_json(checkpoint)), (SCHEDULER, canonical_json(checkpoint.scheduler))):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)


def _check_merging(token_merging: float | None, components: Sequence[ComponentName]) -> None:
    """Raise UsageError if the share of tokens is out of range, or the UNet is not exported."""
    check_token_merging(token_merging)
    if token_merging is not None and "unet" not in components:
        hint = "export the unet too, or leave token merging out"
        raise UsageError("token_merging is for the unet, which is not among the components", hint=hint)


def _check_options(
    precision: Precision, components: Sequence[ComponentName], opset: int, token_merging: float | None
) -> None:
    """Raise UsageError if the precision, a component, the opset or the share of tokens is not supported."""
    if precision not in DTYPES:
        raise UsageError(f"precision {precision} cannot be exported", hint=f"choose among {', '.join(DTYPES)}")
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not in {OPSETS[0]}..{OPSETS[-1]}", hint=f"{DEFAULT_OPSET} is the default")
    if unknown := set(components) - set(COMPONENTS):
        raise UsageError(f"unknown component {min(unknown)}", hint=f"choose among {', '.join(COMPONENTS)}")
    _check_merging(token_merging, components)


def _choose_precisions(
    checkpoint: Checkpoint, tokenizer: Path, names: Sequence[ComponentName], precision: Precision, progress: Progress
) -> dict[ComponentName, tuple[Precision, float | None]]:
    """Return each component's precision, and its largest activation (None unless fp16 is requested)."""
    if precision != "fp16" or not names:
        return dict.fromkeys(names, (precision, None))
    with quiet():
        peaks = measure_activations(checkpoint, tokenizer, names, progress)
    for name, peak in peaks.items():
        if peak > FP16_MAX:
            progress.note(f"{name} stays fp32: its activations reach {peak:.3g}; the limit of fp16 is {FP16_MAX:.0f}")
    return {name: ("fp32" if peak > FP16_MAX else "fp16", peak) for name, peak in peaks.items()}


def _export_component(
    load: Callable[[], TorchComponent],
    name: ComponentName,
    folder: Path,
    plan: tuple[Precision, float | None],
    opset: int,
    progress: Progress,
) -> Component:
    """Trace one component into ``folder``/<name>/, check it and return its record; its weights are then freed."""
    precision, max_activation = plan
    with progress.stage(f"export {name}", 3) as advance, quiet():
        component = load()
        dtype = DTYPES[precision]
        component.module.to(dtype)
        advance(1)
        path = folder / name / "model.onnx"
        path.parent.mkdir()
        export_graph(component, path, dtype, opset)
        advance(1)
        check_graph(component, path, dtype, precision)
        inputs, outputs = tensor_specs(path)
        weights = path.with_name(f"{path.name}.data")
        described = Component(
            graph=path.relative_to(folder).as_posix(),
            weights=weights.relative_to(folder).as_posix() if weights.exists() else None,
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            parameters=sum(parameter.numel() for parameter in component.module.parameters()),
            flops=count_flops(component),
            max_activation=max_activation,
        )
        advance(1)
    del component
    gc.collect()
    return described


def _export_step(unet: Component, folder: Path, prediction_type: PredictionType, progress: Progress) -> Component:
    """Compose the denoising step around the UNet's graph, check it and return its record."""
    with progress.stage("compose denoise_step", 1) as advance:
        path = write_denoise_step(folder / unet.graph, prediction_type)
        check_denoise_step(folder / unet.graph, path, prediction_type, unet.precision)
        advance(1)
    return describe(unet, path)
