"""Suggestions for a path that is a part of a checkpoint, or a folder around one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.checkpoint import open_checkpoint
from sdrt.errors import CheckpointError, SdrtError, UsageError
from tests.checkpoint.sparse_file import write_sparse


def refusal(source: str | Path, cache: Path) -> SdrtError:
    """Return the error of a source that is refused."""
    with pytest.raises(SdrtError) as caught:
        open_checkpoint(str(source), cache=cache)
    assert not (cache / "single-file").exists()
    return caught.value


@pytest.mark.parametrize(
    "part",
    [
        "unet",
        "tokenizer",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "model_index.json",
    ],
)
def test_a_part_of_a_folder_names_the_folder(tiny: Path, cache: Path, part: str) -> None:
    error = refusal(tiny / part, cache)
    assert (error.exit_code, error.hint) == (3, f"give the folder it belongs to: {tiny}")
    assert str(tiny / part) in error.message


def test_a_lora_beside_a_checkpoint_is_not_taken_for_a_part_of_it(copy: Path, cache: Path) -> None:
    path = write_sparse(copy / "pytorch_lora_weights.safetensors", {"unet.conv_in.lora_A.weight": ("F32", (4, 4))})
    error = refusal(path, cache)
    assert "is a LoRA" in error.message
    assert "pipe.fuse_lora()" in error.hint


def test_a_folder_around_the_checkpoint_names_it(copy: Path, cache: Path) -> None:
    assert refusal(copy.parent, cache).hint == f"give the folder inside of it: {copy}"


def test_a_folder_of_the_hubs_cache_names_the_snapshot(tmp_path: Path, cache: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert refusal(snapshot.parents[1], cache).hint == f"give the folder inside of it: {snapshot}"


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["v1.SafeTensors"], "give the file itself: {}/v1.SafeTensors"),
        (["a.safetensors", "b.safetensors", "c.ckpt"], "give the file itself: {}/a.safetensors (or one of 1 others)"),
        (["v1-5-pruned.CKPT"], "get the checkpoint in safetensors"),
        (["manifest.json"], "it is a bundle or an engine set: give it by --bundle or --engines"),
        (["notes.txt"], "give a folder in the diffusers layout, or a single .safetensors file"),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, cache: Path, names: list[str], hint: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("")
    error = refusal(folder, cache)
    assert "model_index.json is missing" in error.message
    assert hint.format(folder) in error.hint


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("org/name/v1.safetensors", "hf download org/name v1.safetensors"),
        ("org/name/sub/v1.safetensors", "hf download org/name sub/v1.safetensors"),
        ("https://huggingface.co/org/name", "give its Hub id: org/name"),
        ("https://huggingface.co/org/name/tree/main", "give its Hub id: org/name"),
        ("huggingface.co/org/name/", "give its Hub id: org/name"),
        ("https://huggingface.co/org/name/resolve/main/v1.SafeTensors?download=true", "hf download org/name v1.Safe"),
        ("https://hf.co/org/name/blob/main/v1.ckpt", "give the Hub id org/name"),
        ("models/v1.safetensors", "give a folder, a .safetensors file"),
        ("models/v1.SAFETENSORS", "give a folder, a .safetensors file"),
        ("models/v1.ckpt", "give a folder, a .safetensors file"),
        ("https://example.org/v1.safetensors", "give a folder, a .safetensors file"),
    ],
)
def test_nothing_there_asks_no_hub_and_understands_its_addresses(cache: Path, source: str, hint: str) -> None:
    error = refusal(source, cache)
    assert isinstance(error, UsageError)
    assert hint in error.hint


@pytest.mark.parametrize("suffix", [".onnx", ".gguf", ".safetensors.part", ""])
def test_files_of_other_kinds(tmp_path: Path, cache: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"")
    error = refusal(path, cache)
    assert isinstance(error, CheckpointError)
    assert error.message == f"{path} is not a .safetensors file"


@pytest.mark.parametrize("suffix", [".ckpt", ".CKPT", ".Pt", ".PTH", ".BIN", ".pickle"])
def test_pickles_in_any_case(tmp_path: Path, cache: Path, suffix: str) -> None:
    path = tmp_path / f"v1-5-pruned{suffix}"
    path.write_bytes(b"")
    assert refusal(path, cache).exit_code == 8
