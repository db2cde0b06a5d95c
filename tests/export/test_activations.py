"""Precision by component: a component that overflows fp16 stays fp32, noted and recorded; others do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.checkpoint import Checkpoint, open_checkpoint, tokenizer_json
from sdrt.errors import NumericError
from sdrt.export import export_bundle
from sdrt.export.activations import FP16_MAX, measure_activations
from sdrt.export.components import load_component
from sdrt.progress import silent
from sdrt.runtime.text import Tokenizer
from tests.doubles.progress import Notes

#: One layer's gain, reversed by the next: the output is unchanged, but values between exceed fp16.
GAIN = 1e5
FC1, FC2 = (f"text_model.encoder.layers.0.mlp.{name}" for name in ("fc1", "fc2"))

Change = Callable[[dict[str, torch.Tensor]], None]


def overflowing(weights: dict[str, torch.Tensor]) -> None:
    """Make the first feed-forward layer give numbers of some 1e5."""
    weights[f"{FC1}.bias"] += 2.0
    for name in ("weight", "bias"):
        weights[f"{FC1}.{name}"] *= GAIN
    weights[f"{FC2}.weight"] /= GAIN


def endless(weights: dict[str, torch.Tensor]) -> None:
    """Overflow fp32 from finite weights."""
    weights[f"{FC1}.bias"].fill_(3e38)


@pytest.fixture
def changed(tiny_path: Path, tmp_path: Path) -> Callable[[Change], Checkpoint]:
    """Return a function that opens the tiny checkpoint with changed weights in its text encoder."""

    def make(change: Change) -> Checkpoint:
        folder = tmp_path / "checkpoint"
        shutil.copytree(tiny_path, folder)
        path = folder / "text_encoder" / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})
        return open_checkpoint(str(folder))

    return make


def measure(checkpoint: Checkpoint, folder: Path, *components: ComponentName) -> dict[ComponentName, float]:
    path = folder / "tokenizer.json"
    path.write_bytes(tokenizer_json(checkpoint))
    return measure_activations(checkpoint, path, components, silent)


def encoded(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Return hidden states of a prompt, by the torch module in a precision."""
    source = load_component(checkpoint, "text_encoder")
    (folder / "ids.json").write_bytes(tokenizer_json(checkpoint))
    tokens = Tokenizer.open(folder / "ids.json", checkpoint.text_encoder["max_position_embeddings"]).encode(["a cat"])
    hidden: torch.Tensor = source.module.to(dtype)(torch.from_numpy(tokens.input_ids))
    return hidden.float()


def export(checkpoint: Checkpoint, out: Path) -> tuple[Bundle, list[str]]:
    notes = Notes()
    return export_bundle(checkpoint, out, precision="fp16", components=("text_encoder",), progress=notes), notes.notes


def test_a_component_that_overflows_stays_fp32(changed: Callable[[Change], Checkpoint], tmp_path: Path) -> None:
    checkpoint = changed(overflowing)
    # It works in fp32, and torch fails in fp16, too.
    assert encoded(checkpoint, tmp_path, torch.float32).isfinite().all()
    assert not encoded(checkpoint, tmp_path, torch.float16).isfinite().all()
    bundle, said = export(checkpoint, tmp_path / "bundle")
    component = bundle.manifest.components["text_encoder"]
    assert bundle.manifest.precision == "fp16"
    assert component.precision == "fp32"
    assert component.outputs[0].dtype == "float32"
    assert component.max_activation is not None
    assert component.max_activation > FP16_MAX
    (line,) = (line for line in said if "stays fp32" in line)
    assert line.startswith("text_encoder stays fp32: its activations reach ")
    assert "65504" in line


def test_a_component_that_fits_is_exported_in_fp16(tiny_path: Path, tmp_path: Path) -> None:
    bundle, said = export(open_checkpoint(str(tiny_path)), tmp_path / "bundle")
    component = bundle.manifest.components["text_encoder"]
    assert (component.precision, component.outputs[0].dtype) == ("fp16", "float16")
    assert component.max_activation is not None
    assert 0 < component.max_activation < 100  # hidden states of a fresh encoder are of size 1
    assert not [line for line in said if "fp32" in line]


def test_a_broken_checkpoint_is_named(changed: Callable[[Change], Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="text_encoder gives NaN or Inf in fp32"):
        measure(changed(endless), tmp_path, "text_encoder")


@pytest.mark.long
def test_each_component_is_measured_on_its_own(tiny_path: Path, tmp_path: Path) -> None:
    """Check that the decoder's overflow does not affect the others, and is not seen if it is not exported."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_path, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    # The next normalisation removes the gain.
    weights["decoder.conv_in.weight"] *= GAIN
    save_file(weights, path, metadata={"format": "pt"})
    peaks = measure(open_checkpoint(str(folder)), tmp_path, *COMPONENTS)
    assert {name for name, peak in peaks.items() if peak > FP16_MAX} == {"vae_decoder"}
    sound = measure(open_checkpoint(str(tiny_path)), tmp_path, *COMPONENTS)
    assert max(sound.values()) < FP16_MAX
    assert {name: peaks[name] for name in ("text_encoder", "unet")} == {n: sound[n] for n in ("text_encoder", "unet")}
    assert measure(open_checkpoint(str(folder)), tmp_path, "unet") == {"unet": sound["unet"]}
