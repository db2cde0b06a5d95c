"""A bundle in int8 from one in fp32: its UNet calibrated, quantised, tested and sealed. Needs no torch."""

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

#: Counts changes of the quantiser that change what it makes.
QUANTISER = 4
#: Above this error of the held-out picture's latents, in means over areas, the modules that cost most are kept in fp32.
#: On the demo four of a hundred pictures are lost at 0.03, one or two at 0.02 (docs/decisions/0057).
WANTED_ERROR = 0.02
#: Above this, with as many kept as the last try allows, the bundle is refused: large shapes fall to pieces.
ERROR_LIMIT = 0.1
#: Modules are tried on as many steps of the picture, those with the largest faults: by one alone what is kept on the
#: demo leaves twice the error.
TRIED_STEPS = 2
#: Some steps' faults foretell those of the picture roughly: each further try leaves a smaller part of `WANTED_ERROR`.
TRIES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)


def quantise_bundle(bundle: Bundle, out: Path, *, progress: Progress = silent) -> Bundle:
    """Write a bundle whose UNet computes its products in int8, published by one rename when it is whole.

    Whole guided denoisings of the bundle's own fp32 graphs give the ranges. The quantised graph is then held against
    fp32 on a picture that was no part of them; where its latents are off by more than `WANTED_ERROR`, the modules
    that cost most for their work are found and kept in fp32. Text encoder and VAE stay as they are.

    Args:
        bundle: In fp32, with text encoder and UNet.
        out: The new bundle's folder; replaced when it exists.
        progress: Told of every run.

    Raises:
        UsageError: The bundle is not in fp32.
        BundleError: It lacks the text encoder or the UNet.
        NumericError: The graph is not what it should be even with the most sensitive modules kept.
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
        components = _described(bundle, folder)
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
    """Everything but the UNet's folder."""
    for name in bundle.manifest.files:
        if Path(name).parts[0] == "unet":
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)
    (folder / "unet").mkdir()


def _quantise(source: Path, target: Path, calibration: Calibration, progress: Progress) -> None:
    """Write the quantised graph, with as few of its modules kept as its test allows.

    Raises:
        NumericError: It fails with all kept that may be.
    """
    kept: tuple[str, ...] = ()
    with progress.stage("quantise", 1) as advance:
        made = quantise(source, target, calibration.ranges)
        faults = calibration.faults(open_cpu_session(target))
        advance(1)
    whole = error = math.hypot(*faults)
    if math.isfinite(whole) and whole > WANTED_ERROR:
        worst = [calibration.held_out[index] for index in np.argsort(faults)[-TRIED_STEPS:]]
        sensitivities = by_sensitivity(source, calibration.ranges, worst, progress)
        with progress.stage("quantise the rest", len(TRIES)) as advance:
            for part in TRIES:
                kept = to_keep(sensitivities, part * WANTED_ERROR / whole)
                made = quantise(source, target, calibration.ranges, kept)
                error = math.hypot(*calibration.faults(open_cpu_session(target)))
                advance(1)
                if error <= WANTED_ERROR:
                    break
    said = f", {len(kept)} modules kept in fp32" if kept else ""
    if not math.isfinite(error) or error > ERROR_LIMIT:
        message = f"in int8 a picture's latents are off by {error:.2g}{said}; {ERROR_LIMIT} is allowed"
        raise NumericError(message, hint="use --precision bf16 or fp32 with this checkpoint")
    progress.note(f"{made} products in int8{said}: the latents of a picture that was kept apart are off by {error:.2g}")


def _described(bundle: Bundle, folder: Path) -> dict[ComponentName, Component]:
    """The components' part of the manifest; the denoising step is composed anew around the quantised UNet.

    DeepCache's passes have no int8 form (docs/decisions/0058), and are left out.
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
