"""Fault-matrix rows 5 and 28, fp16 variants and shards: which file holds a component's weights."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_vae
from sdrt.errors import CheckpointError, TrustError
from tests.attacks.material import Sentinel

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
PICKLES = {"text_encoder": "pytorch_model.bin", "unet": "diffusion_pytorch_model.bin", "vae": "model.ckpt"}


@pytest.mark.parametrize("component", WEIGHTS)
def test_row_5_pickle_only_is_not_trusted_and_not_opened(copy: Path, cache: Path, component: str) -> None:
    sentinel = copy / "sentinel"
    (copy / component / WEIGHTS[component]).unlink()
    (copy / component / PICKLES[component]).write_bytes(pickle.dumps(Sentinel(sentinel)))
    with pytest.raises(TrustError, match=f"{component} holds only pickled weights") as caught:
        open_checkpoint(str(copy), cache=cache)
    assert caught.value.exit_code == 8
    assert not sentinel.exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
def test_row_5_pickle_given_as_a_single_file(tmp_path: Path, cache: Path, suffix: str) -> None:
    path, sentinel = tmp_path / f"model{suffix}", tmp_path / "sentinel"
    path.write_bytes(pickle.dumps(Sentinel(sentinel)))
    with pytest.raises(TrustError, match="is a pickle"):
        open_checkpoint(str(path), cache=cache)
    assert not sentinel.exists()


def test_row_5_pickle_beside_safetensors_is_ignored(copy: Path, cache: Path) -> None:
    before = open_checkpoint(str(copy), cache=cache)
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert open_checkpoint(str(copy), cache=cache).digest == before.digest


@pytest.mark.parametrize("component", WEIGHTS)
def test_weights_missing_or_in_shards(copy: Path, cache: Path, component: str) -> None:
    path = copy / component / WEIGHTS[component]
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{component}/{path.name} is missing"):
        open_checkpoint(str(copy), cache=cache)
    path.with_name(f"{path.name}.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="split into shards") as caught:
        open_checkpoint(str(copy), cache=cache)
    assert "max_shard_size" in caught.value.hint


def test_fp16_variant_is_taken_when_it_is_all_there_is(copy: Path, cache: Path) -> None:
    plain = copy / "vae" / WEIGHTS["vae"]
    variant = plain.with_suffix(".fp16.safetensors")
    shutil.copyfile(plain, variant)
    assert open_checkpoint(str(copy), cache=cache).weights("vae") == plain
    plain.unlink()
    assert open_checkpoint(str(copy), cache=cache).weights("vae") == variant


def test_row_28_snapshot_of_links_as_in_the_hubs_cache(tiny: Path, tmp_path: Path, cache: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("a" * 40)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny.rglob("*.*"))):
        blob = blobs / f"{number:064d}"
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(tiny)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    checkpoint = open_checkpoint(str(snapshot), cache=cache)
    assert checkpoint.digest == open_checkpoint(str(tiny), cache=cache).digest
    assert not checkpoint.weights("unet").is_symlink()
    assert checkpoint.weights("unet").parent == blobs
    assert load_vae(checkpoint).config.scaling_factor == 0.18215


def test_row_28_link_to_nothing(copy: Path, cache: Path) -> None:
    path = copy / "unet" / WEIGHTS["unet"]
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(CheckpointError, match="is a link to nothing"):
        open_checkpoint(str(copy), cache=cache)
