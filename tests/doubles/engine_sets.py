"""Hand-made engine sets: sealed folders whose engines are a few bytes that no backend opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.engine_set import SCHEDULER, TOKENIZER, BatchRange, EngineManifest
from sdrt.artefacts.manifest import file_records, seal
from sdrt.files import sha256_file
from tests.doubles.engines import engine_component, tensor
from tests.models.tiny_bundle import CHECKPOINT, MODEL

KEY = "cd" * 32


def make_set(folder: Path, **changes: Any) -> str:
    """Write an engine set of one component and return its digest; ``changes`` replace fields of its manifest."""
    for name, content in {"unet/model.blob": b"engine" * 50, TOKENIZER: b"{}", SCHEDULER: b"{}"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    component = engine_component(
        [tensor("sample", 4)],
        [tensor("out_sample", 4)],
        file="unet/model.blob",
        batch=BatchRange(min=1, opt=2, max=4),
        seconds=0.5,
        size_bytes=300,
    )
    manifest = EngineManifest(
        schema_version=1,
        backend="openvino",
        key=KEY,
        precision="fp32",
        checkpoint=CHECKPOINT,
        bundle_digest="ef" * 32,
        model=MODEL,
        components={"unet": component},
        files=file_records(folder),
        versions={},
        host={},
    )
    seal(folder, manifest.model_copy(update=changes))
    folder.chmod(0o700)
    return sha256_file(folder / "manifest.json")
