"""Exporting: equal bytes anywhere, parts of a checkpoint, fp16, and nothing left behind by failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import sdrt
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from sdrt.checkpoint import open_checkpoint
from sdrt.errors import UsageError
from sdrt.export import bundle_export, export_bundle

CHEAP: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder")


@pytest.fixture(scope="module")
def cheap_bundle(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("here") / "bundle"
    return export_bundle(open_checkpoint(str(tiny_path)), folder, components=CHEAP)


def test_only_the_components_asked_for(cheap_bundle: Bundle) -> None:
    assert set(cheap_bundle.manifest.components) == set(CHEAP)
    assert {path.name for path in cheap_bundle.path.iterdir()} == {*CHEAP, "tokenizer", "scheduler", "manifest.json"}


def test_two_exports_in_different_places_are_equal_byte_for_byte(
    cheap_bundle: Bundle, tiny_path: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "sdrt", "export", "--checkpoint", str(tiny_path), "--out", "some where/else"]
    for component in CHEAP:
        words += ["--components", component]
    elsewhere = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(sdrt.__file__).parent.parent)}
    subprocess.run(words, cwd=tmp_path, env=elsewhere, check=True, capture_output=True)
    other = Bundle.open(tmp_path / "some where" / "else", verify=True)
    assert other.manifest.files == cheap_bundle.manifest.files
    assert other.digest == cheap_bundle.digest


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_fails_between_components_leaves_nothing(
    kind: type[BaseException], tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_second(checkpoint: object, name: str, folder: Path, *_: object) -> None:
        (folder / name).mkdir()
        (folder / name / "model.onnx").write_bytes(b"half")
        if name != "text_encoder":
            raise kind

    monkeypatch.setattr(bundle_export, "_export_component", fail_at_second)
    with pytest.raises(kind):
        export_bundle(open_checkpoint(str(tiny_path)), tmp_path / "bundle", components=CHEAP)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_first(tiny_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    with pytest.raises(UsageError, match="precision bf16"):
        export_bundle(checkpoint, tmp_path / "bundle", precision="bf16")
    with pytest.raises(UsageError, match=r"opset 19 is not in 20\.\.24"):
        export_bundle(checkpoint, tmp_path / "bundle", opset=19)
    with pytest.raises(UsageError, match="unknown component safety_checker"):
        export_bundle(checkpoint, tmp_path / "bundle", components=["safety_checker"])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def weight_dtypes(path: Path) -> set[int]:
    """Return element types of the weights that are large enough to be computed with."""
    model = onnx.load(path, load_external_data=False)
    return {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) >= 64}


def test_fp16_computes_in_fp16(tiny_path: Path, tmp_path: Path) -> None:
    bundle = export_bundle(
        open_checkpoint(str(tiny_path)), tmp_path / "bundle", precision="fp16", components=["text_encoder"]
    )
    described = bundle.manifest.components["text_encoder"]
    assert (bundle.manifest.precision, described.precision) == ("fp16", "fp16")
    assert [spec.dtype for spec in (*described.inputs, *described.outputs)] == ["int64", "float16"]
    found = weight_dtypes(bundle.graph("text_encoder"))
    assert onnx.TensorProto.FLOAT16 in found
    assert onnx.TensorProto.FLOAT not in found


@pytest.mark.long
def test_the_fp16_unet_keeps_its_timestep_fp32(tiny_path: Path, tmp_path: Path) -> None:
    bundle = export_bundle(open_checkpoint(str(tiny_path)), tmp_path / "bundle", precision="fp16", components=["unet"])
    described = bundle.manifest.components["unet"]
    assert {spec.name: spec.dtype for spec in (*described.inputs, *described.outputs)} == {
        "sample": "float16",
        "timestep": "float32",
        "encoder_hidden_states": "float16",
        "out_sample": "float16",
    }
    assert onnx.TensorProto.FLOAT not in weight_dtypes(bundle.graph("unet"))
