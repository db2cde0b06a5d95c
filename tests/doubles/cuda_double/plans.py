"""Plans for the double: files that name an ONNX graph and the optimisation profiles, and engine sets of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import tokenizers

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import (
    SCHEDULER,
    TOKENIZER,
    BackendName,
    BatchRange,
    EngineComponent,
    EngineManifest,
    EngineSet,
)
from sdrt.artefacts.manifest import Component, ComponentName, file_records, seal
from sdrt.export.denoise_step import compose, describe
from sdrt.files import sha256_file
from sdrt.sampling.noise_config import PredictionType
from tests.doubles.engines import engine_component

MAGIC = "sdrt plan of the double\n"
COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "denoise_step", "unet", "vae_decoder")
#: The tiny bundle's own schedule reaches sigmas at which float32 cannot resolve a difference.
SD_V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: Pictures at once, as min, opt, max: one triple a profile.
Profiles = Sequence[tuple[int, int, int]]


def write_plan(
    path: Path,
    graph: Path,
    profiles: Profiles,
    *,
    activation_bytes: int = 4096,
    host_code: bool = False,
    warnings: Sequence[str] = (),
    capturable: bool = True,
) -> None:
    """Write a plan.

    Args:
        path: The plan's file.
        graph: The graph that it computes.
        profiles: Lengths of the batch axis.
        activation_bytes: Memory of its context.
        host_code: Whether it contains a runtime, as version-compatible plans do.
        warnings: Warnings that TensorRT logs when it opens the plan.
        capturable: Whether TensorRT-RTX can capture its runs.
    """
    content = {
        "graph": str(graph),
        "profiles": [list(p) for p in profiles],
        "activation_bytes": activation_bytes,
        "host_code": host_code,
        "warnings": list(warnings),
        "capturable": capturable,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MAGIC + json.dumps(content))


def read_plan(data: bytes) -> dict[str, Any] | None:
    """Read a plan's content; None if the bytes are no plan."""
    text = data.decode("utf-8", "replace")
    content: dict[str, Any] | None = json.loads(text.removeprefix(MAGIC)) if text.startswith(MAGIC) else None
    return content


def step_graph(bundle: Bundle, folder: Path, prediction_type: PredictionType) -> tuple[Path, Component]:
    """Compose the denoise step around a bundle's UNet, in its own folder; return it and its part of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(bundle.graph("unet"))
    compose(model, prediction_type)
    path = folder / "denoise_step.onnx"
    onnx.save(model, path)
    return path, describe(bundle.manifest.components["unet"], path)


def double_set(
    bundle: Bundle,
    folder: Path,
    *,
    backend: BackendName = "tensorrt",
    profiles: Profiles = ((1, 1, 4),),
    components: Sequence[ComponentName] = COMPONENTS,
    prediction_type: PredictionType = "epsilon",
    activation_bytes: Mapping[str, int] | None = None,
    host: Mapping[str, str] | None = None,
    **plan: Any,
) -> EngineSet:
    """Write a set whose plans the double opens.

    ``profiles`` count pictures; UNet and text encoder take two rows each. Further arguments are `write_plan`'s.
    """
    path = folder / "engines"
    step, described = step_graph(bundle, folder / "step", prediction_type)
    parts: dict[ComponentName, EngineComponent] = {}
    for name in components:
        graph, component = (
            (step, described) if name == "denoise_step" else (bundle.graph(name), bundle.manifest.components[name])
        )
        rows = [(a, b, c * 2) if name in ("unet", "text_encoder") else (a, b, c) for a, b, c in profiles]
        size_bytes = (activation_bytes or {}).get(name, 4096)
        write_plan(path / name / "model.plan", graph, rows, activation_bytes=size_bytes, **plan)
        parts[name] = engine_component(
            component.inputs,
            component.outputs,
            file=f"{name}/model.plan",
            precision=component.precision,
            batch=BatchRange(min=min(r[0] for r in rows), opt=rows[0][1], max=max(r[2] for r in rows)),
            size_bytes=(path / name / "model.plan").stat().st_size,
        )
    for file, text in ((TOKENIZER, word_tokenizer()), (SCHEDULER, json.dumps(SD_V1))):
        (path / file).parent.mkdir()
        (path / file).write_text(text)
    manifest = EngineManifest(
        schema_version=1,
        backend=backend,
        key="cd" * 32,
        precision=bundle.manifest.precision,
        checkpoint=bundle.manifest.checkpoint,
        bundle_digest=bundle.digest,
        model=bundle.manifest.model,
        components=parts,
        files=file_records(path),
        versions={},
        host=dict(host or {}),
    )
    seal(path, manifest)
    return EngineSet.open(path, trust=sha256_file(path / "manifest.json"))


def word_tokenizer() -> str:
    """Return a tokenizer.json of a few words, whose ids are in the tiny text encoder's table."""
    words = ["<pad>", "<unk>", "a", "red", "green", "blue", "circle", "square", "star", "on", "white", "black"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(pad_id=0, pad_token="<pad>")
    text: str = made.to_str()
    return text
