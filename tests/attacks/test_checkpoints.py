"""Fault-matrix rows 1 to 8 and 27 to 30: checkpoints that are malformed, of other models, or malicious."""

from __future__ import annotations

import pickle
import shutil
import socket
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.weights import STEMS
from sdrt.errors import CheckpointError
from sdrt.files import sha256_bytes
from tests.attacks.material import UNET, Sentinel, edit, refusal, safetensors, v1_checkpoint
from tests.command_line import CommandLine

F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v1_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Write a checkpoint to break."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_negative_control(folder: Path, cache: Path) -> None:
    assert open_checkpoint(str(folder), cache=cache).name == "checkpoint"


@pytest.mark.parametrize("length", [1 << 20, (1 << 64) - 1])
def test_row_01_a_header_longer_than_the_file(folder: Path, cache: Path, length: int) -> None:
    (folder / UNET).write_bytes(safetensors(b"{}", length=length))
    tracemalloc.start()
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, UNET, f"{length} bytes in a file of 10")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The vocabulary alone takes some 10 MiB to parse; what the header claims would be 1 MiB at the least.
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize("header", [b'{"a\xff": 1}', b"{", b"[" * 99_999, b"[]", b'{"a": 1, "a": 2}'])
def test_row_02_a_header_that_is_no_json_object_of_unique_names(folder: Path, cache: Path, header: bytes) -> None:
    (folder / UNET).write_bytes(safetensors(header))
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, UNET, "header")


@pytest.mark.parametrize(
    ("header", "data_bytes"),
    [
        ({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, 24),
        ({"a": F32, "b": {**F32, "data_offsets": [20, 36]}}, 36),
        ({"a": {**F32, "shape": [2, 3]}}, 16),
        ({"a": {**F32, "shape": [1 << 62, 1 << 62]}}, 16),
        ({"a": F32}, 15),
    ],
    ids=["overlap", "hole", "shape", "overflow", "short"],
)
def test_row_03_offsets_and_shapes_that_do_not_fit(folder: Path, cache: Path, header: Any, data_bytes: int) -> None:
    (folder / UNET).write_bytes(safetensors(header, bytes(data_bytes)))
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, UNET)


def test_row_04_weights_that_are_no_numbers(tiny_path: Path, tmp_path: Path, cache: Path) -> None:
    from safetensors.torch import load_file, save_file

    from sdrt.checkpoint.modules import load_unet

    copy = Path(shutil.copytree(tiny_path, tmp_path / "copy"))
    weights = load_file(copy / UNET)
    damaged = weights["conv_in.weight"].clone()
    damaged.view(-1)[:12] = float("nan")
    save_file({**weights, "conv_in.weight": damaged}, copy / UNET)
    opened = open_checkpoint(str(copy), cache=cache)
    refusal(partial(load_unet, opened), 3, "unet/conv_in.weight has 12 NaN")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt"])
def test_row_05_pickled_weights_are_never_opened(folder: Path, cache: Path, tmp_path: Path, name: str) -> None:
    payload = pickle.dumps(Sentinel(tmp_path / "sentinel"))
    (folder / UNET).unlink()
    (folder / "unet" / name).write_bytes(payload)
    refusal(partial(open_checkpoint, str(folder), cache=cache), 8, "pickle", name)
    refusal(partial(open_checkpoint, str(folder / "unet" / name), cache=cache), 8, "pickle")
    assert not (tmp_path / "sentinel").exists()
    pickle.loads(payload)  # negative control: the payload does what the test says it does
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_row_06_a_pickle_under_the_name_of_safetensors(folder: Path, cache: Path, tmp_path: Path, zipped: bool) -> None:
    payload = pickle.dumps(Sentinel(tmp_path / "sentinel"))
    if zipped:
        with zipfile.ZipFile(folder / UNET, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        (folder / UNET).write_bytes(payload)
    for source in (folder, folder / UNET):
        refusal(partial(open_checkpoint, str(source), cache=cache), 3, "pickle")
    assert not (tmp_path / "sentinel").exists()


def test_row_07_another_models_index(folder: Path, cache: Path) -> None:
    edit(folder / "model_index.json", safety_checker=["made_up", "Checker"], feature_extractor=None)
    open_checkpoint(str(folder), cache=cache)
    edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, "StableDiffusionXLPipeline", "Stable Diffusion v1")
    (folder / "model_index.json").unlink()
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, "model_index.json is missing")


@pytest.mark.parametrize("component", [*STEMS, "tokenizer", "scheduler"])
def test_row_08_a_component_is_missing(
    folder: Path, cache: Path, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("sdrt.checkpoint.weight_file.read_header", read)
    shutil.rmtree(folder / component)
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, f"has no {component}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty Hub cache, offline; a connection fails the test."""
    from huggingface_hub import constants

    def connect(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    return tmp_path / "hub"


def snapshot(hub: Path, checkpoint: Path, commit: str) -> Path:
    """Write a checkpoint into the Hub's cache as a snapshot of links."""
    folder = hub / "models--org--name" / "snapshots" / commit
    for path in (path for path in checkpoint.rglob("*") if path.is_file()):
        blob = hub / "models--org--name" / "blobs" / sha256_bytes(str(path.relative_to(checkpoint)).encode())
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = folder / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (hub / "models--org--name" / "refs").mkdir(exist_ok=True)
    (hub / "models--org--name" / "refs" / "main").write_text(commit)
    return folder


def test_row_27_the_hub_off_line_and_a_branch_that_moves(hub: Path, whole: Path, cache: Path) -> None:
    error = refusal(partial(open_checkpoint, "org/name", cache=cache), 3, "org/name", "off-line")
    assert "HF_HUB_OFFLINE" in error.hint
    for commit in ("1" * 40, "2" * 40):
        snapshot(hub, whole, commit)
        assert open_checkpoint("org/name", cache=cache).revision == commit  # the caller can see the new commit
    assert open_checkpoint("org/name", revision="1" * 40, cache=cache).revision == "1" * 40


def test_row_28_a_snapshot_of_links(hub: Path, whole: Path, cache: Path, tmp_path: Path) -> None:
    folder = snapshot(hub, whole, "1" * 40)
    opened = open_checkpoint(str(folder), cache=cache)
    assert opened.digest == open_checkpoint(str(whole), cache=cache).digest
    assert not opened.weights("unet").is_symlink()
    (folder / UNET).resolve().unlink()
    refusal(partial(open_checkpoint, str(folder), cache=cache), 3, UNET, "link to nothing")
    # A bundle has no links: files listed in its manifest must lie in it.
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").symlink_to(whole / "model_index.json")
    refusal(partial(Bundle.open, tmp_path / "bundle"), 8, "is a link")


def test_row_29_a_git_lfs_pointer(folder: Path, cache: Path) -> None:
    (folder / UNET).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167536\n")
    error = refusal(partial(open_checkpoint, str(folder), cache=cache), 3, UNET, "git-lfs pointer")
    assert "git lfs pull" in error.hint


def test_row_30_archives_are_not_opened(tmp_path: Path, cache: Path, sdrt: CommandLine) -> None:
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped", "canary")
        archive.writestr("manifest.json", "{}")
    refusal(partial(Bundle.open, path), 3, "manifest.json")
    refusal(partial(EngineSet.open, path), 3, "bundle.zip")
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
        open_checkpoint(str(path), cache=cache)
    for option in ("--bundle", "--engines"):
        assert sdrt("denoise", "--prompt", "a", option, path, "--out", tmp_path / "a.png").code == 2
    assert sorted(tmp_path.iterdir()) == [path]
    assert not (tmp_path.parent / "escaped").exists()
