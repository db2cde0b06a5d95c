"""Digests of checkpoints: changes that affect them, changes that do not, and the memory of large files' digests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sdrt.checkpoint import digests, open_checkpoint
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.weights import STEMS, find_weights
from sdrt.files import sha256_file
from tests.checkpoint.changes import Edit


def digest(folder: Path, cache: Path) -> str:
    return open_checkpoint(str(folder), cache=cache).digest


def test_it_does_not_depend_on_the_folder_or_on_who_wrote_it(tiny: Path, copy: Path, cache: Path, edit: Edit) -> None:
    edit("unet/config.json", {"_diffusers_version": "0.2.2", "_name_or_path": "/home/somebody"})
    edit("text_encoder/config.json", {"transformers_version": "4.22.0", "torch_dtype": "float32"})
    edit("tokenizer/tokenizer_config.json", {"name_or_path": "./elsewhere"})
    (copy / "README.md").write_text("more files")
    assert digest(copy, cache) == digest(tiny, cache)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unet/config.json", {"norm_eps": 1e-6}),
        ("vae/config.json", {"scaling_factor": 0.2}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("scheduler/scheduler_config.json", {"beta_end": 0.013}),
        ("tokenizer/special_tokens_map.json", {"pad_token": "!"}),
    ],
)
def test_every_config_changes_it(tiny: Path, copy: Path, cache: Path, edit: Edit, name: str, values: object) -> None:
    edit(name, values)  # type: ignore[arg-type]
    assert digest(copy, cache) != digest(tiny, cache)


@pytest.mark.parametrize("component", STEMS)
def test_one_bit_of_any_weight_changes_it(tiny: Path, copy: Path, cache: Path, component: str) -> None:
    path = find_weights(copy, component)
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, path)
    assert digest(copy, cache) != digest(tiny, cache)


def test_the_vocabulary_changes_it(tiny: Path, copy: Path, cache: Path) -> None:
    merges = copy / "tokenizer" / "merges.txt"
    merges.write_text("\n".join(merges.read_text(encoding="utf-8").split("\n")[:-2]), encoding="utf-8")
    assert digest(copy, cache) != digest(tiny, cache)


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, cache: Path) -> DigestMemory:
    """Remember digests of files of any size."""
    monkeypatch.setattr(digests, "REMEMBERED_FROM_BYTES", 0)
    return DigestMemory(cache / "digests.json")


def test_memory_hashes_a_file_once(tmp_path: Path, remembering: DigestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    expected = remembering.sha256(file)
    assert expected == sha256_file(file)
    monkeypatch.setattr(digests, "sha256_file", lambda path: "0" * 64)
    assert DigestMemory(remembering.path).sha256(file) == expected


def test_memory_sees_every_write_even_with_the_old_time_and_size(tmp_path: Path, remembering: DigestMemory) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    remembering.sha256(file)
    status = file.stat()
    while file.stat().st_ctime_ns == status.st_ctime_ns:  # until the file system's clock has moved on
        file.write_bytes(b"two")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert remembering.sha256(file) == sha256_file(file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_memory_that_is_damaged_is_started_anew(tmp_path: Path, remembering: DigestMemory, content: bytes) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    remembering.path.parent.mkdir()
    remembering.path.write_bytes(content)
    assert remembering.sha256(file) == sha256_file(file)
    assert sha256_file(file) in json.loads(remembering.path.read_bytes()).values()


def test_memory_that_cannot_be_written_is_done_without(tmp_path: Path, remembering: DigestMemory) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    remembering.path.parent.write_text("a file where the folder should be")
    assert remembering.sha256(file) == sha256_file(file)


def test_memory_keeps_a_bounded_number_of_files(
    tmp_path: Path, remembering: DigestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "REMEMBERED_FILES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_text(str(number))
        remembering.sha256(tmp_path / str(number))
    assert list(json.loads(remembering.path.read_bytes()).values()) == [
        sha256_file(tmp_path / str(number)) for number in (2, 3, 4)
    ]


def test_a_moved_checkpoint_keeps_its_digest(copy: Path, tmp_path: Path, cache: Path) -> None:
    before = digest(copy, cache)
    assert digest(Path(shutil.move(copy, tmp_path / "moved")), cache) == before
