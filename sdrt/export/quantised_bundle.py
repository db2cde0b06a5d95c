"""Quantise a bundle from fp32 to int8: calibrate, quantise and test its UNet, then seal the copy. Needs no torch."""

from __future__ import annotations

import math
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import DEEPCACHE, Component, ComponentName, Manifest, file_records, seal
from sdrt.engines.self_test import write_vectors
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.export.calibration import Calibration, calibrate
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.denoise_step import describe, write_denoise_step
from sdrt.export.quantise import products, quantise
from sdrt.export.sensitivity import by_sensitivity, to_keep
from sdrt.files import disk_errors, folder_published_as, utf8_path
from sdrt.progress import Progress, silent
from sdrt.sampling.noise_config import PredictionType

#: Version of the quantiser; increased when a change alters its output.
QUANTISER = 4
#: Above this error of a held-out picture (see `Calibration.errors`) the most sensitive modules stay in fp32.
#: On the demo four of a hundred pictures are lost at 0.03, one or two at 0.02 (docs/decisions/0057).
WANTED_ERROR = 0.02
#: Above this error after the last try the bundle is refused: large shapes in its pictures break up.
ERROR_LIMIT = 0.1
#: Number of steps on which modules are tested, those with the largest errors. With one alone, the modules kept on the
#: demo leave twice the error.
TRIED_STEPS = 2
#: Errors of single steps predict that of the picture roughly, so each try aims at a smaller part of `WANTED_ERROR`.
TRIES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)


def quantise_bundle(bundle: Bundle, out: Path, *, progress: Progress = silent) -> Bundle:
    """Write a copy of a bundle whose UNet computes its products in int8, published by one rename when it is whole.

    Whole guided denoisings with the bundle's fp32 graphs give the ranges. The quantised graph is then compared with
    fp32 on a held-out picture; if the error of its latents exceeds `WANTED_ERROR`, the modules with the largest error
    per FLOP stay in fp32. Text encoder and VAE are copied unchanged.

    Args:
        bundle: Bundle in fp32, with text encoder and UNet.
        out: The new bundle's folder; replaced if it exists.
        progress: Progress callback.

    Raises:
        UsageError: The bundle is not in fp32.
        BundleError: The bundle has no text encoder or no UNet.
        NumericError: The error exceeds `ERROR_LIMIT` even with the most sensitive modules in fp32.
        BackendUnavailableError: onnx or onnxruntime is not installed.
        ResourceError: ``out`` cannot be written.
    """
    import onnx

    if bundle.manifest.precision != "fp32":
        message = f"{bundle.path} is in {bundle.manifest.precision}; int8 is made from fp32"
        raise UsageError(message, hint="give a bundle that was exported with --precision fp32")
    for name in ("text_encoder", "unet"):
        bundle.graph(name)
    bundle.verify_weights()
    source = bundle.graph("unet")
    graph = onnx.load(str(source), load_external_data=False).graph
    nodes = products(graph)
    if not nodes:
        raise BundleError(f"{source} has no product to quantise", hint="export the checkpoint again")
    calibration = calibrate(bundle, list(dict.fromkeys(node.input[0] for node in nodes)), progress)
    with folder_published_as(out) as published, disk_errors(published), utf8_path(published) as folder:
        _copy_others(bundle, folder)
        target = folder / bundle.component("unet").graph
        _quantise(source, target, calibration, progress)
        write_vectors(target, [(made.feeds, made.output) for made in calibration.held_out])
        components = _describe_components(bundle, folder)
        manifest = bundle.manifest.model_copy(
            update={
                "precision": "int8",
                "components": components,
                "files": file_records(folder),
                "versions": {**bundle.manifest.versions, "onnxruntime": version("onnxruntime")},
            }
        )
        seal(folder, Manifest.model_validate(manifest.model_dump()))
    return Bundle.open(out)


def _copy_others(bundle: Bundle, folder: Path) -> None:
    """Copy the bundle's files except the UNet's, whose folder is made empty."""
    for name in bundle.manifest.files:
        if Path(name).parts[0] == "unet":
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)
    (folder / "unet").mkdir()


def _quantise(source: Path, target: Path, calibration: Calibration, progress: Progress) -> None:
    """Write the quantised graph, with as few modules in fp32 as its error allows.

    Raises:
        NumericError: The error exceeds `ERROR_LIMIT` even with the most modules in fp32.
    """
    kept: tuple[str, ...] = ()
    with progress.stage("quantise", 1) as advance:
        made = quantise(source, target, calibration.ranges)
        errors = calibration.errors(open_cpu_session(target))
        advance(1)
    whole = error = math.hypot(*errors)
    if math.isfinite(whole) and whole > WANTED_ERROR:
        worst = [calibration.held_out[index] for index in np.argsort(errors)[-TRIED_STEPS:]]
        sensitivities = by_sensitivity(source, calibration.ranges, worst, progress)
        with progress.stage("quantise with modules kept", len(TRIES)) as advance:
            for part in TRIES:
                kept = to_keep(sensitivities, part * WANTED_ERROR / whole)
                made = quantise(source, target, calibration.ranges, kept)
                error = math.hypot(*calibration.errors(open_cpu_session(target)))
                advance(1)
                if error <= WANTED_ERROR:
                    break
    in_fp32 = f", {len(kept)} modules kept in fp32" if kept else ""
    if not math.isfinite(error) or error > ERROR_LIMIT:
        message = f"the int8 UNet changes a picture's latents by {error:.2g}{in_fp32}; {ERROR_LIMIT} is allowed"
        raise NumericError(message, hint="use --precision bf16 or fp32 with this checkpoint")
    progress.note(f"{made} products in int8{in_fp32}; the latents of a held-out picture change by {error:.2g}")


def _describe_components(bundle: Bundle, folder: Path) -> dict[ComponentName, Component]:
    """Compose the denoising step around the quantised UNet, and return the components' records for the manifest.

    DeepCache's passes have no int8 form (docs/decisions/0058) and are left out.
    """
    import json

    held = {name: part for name, part in bundle.manifest.components.items() if name not in DEEPCACHE}
    unet = held["unet"].model_copy(update={"precision": "int8"})
    held["unet"] = unet
    if "denoise_step" in held:
        config = json.loads((folder / "scheduler/scheduler_config.json").read_bytes())
        prediction_type: PredictionType = config.get("prediction_type", "epsilon")
        held["denoise_step"] = describe(unet, write_denoise_step(folder / unet.graph, prediction_type))
    return held
