"""Accepted sources: folders, files, "demo", none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.checkpoint.sources import DEMO_FOLDER
from sdrt.errors import CheckpointError, UsageError


def test_a_folder_is_named_after_itself(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(tiny), cache=cache)
    assert (checkpoint.name, checkpoint.revision) == ("tiny", None)
    monkeypatch.chdir(tiny)
    relative = open_checkpoint(".", cache=cache)
    assert (relative.name, relative.digest, relative.path) == ("tiny", checkpoint.digest, tiny)


def test_opening_writes_nothing_beside_the_checkpoint(copy: Path, cache: Path) -> None:
    before = sorted(copy.parent.rglob("*"))
    open_checkpoint(str(copy), cache=cache)
    assert sorted(path for path in copy.parent.rglob("*") if cache not in (path, *path.parents)) == before


def test_demo_ships(cache: Path) -> None:
    checkpoint = open_checkpoint("demo", cache=cache)
    assert (checkpoint.name, checkpoint.path) == ("demo", DEMO_FOLDER)
    for load in (load_text_encoder, load_unet, load_vae):
        assert sum(weights.numel() for weights in load(checkpoint).parameters()) > 0


@pytest.mark.parametrize("source", ["", "nothing/at/all", "./missing", "/no/such/folder", "no such model", "\0"])
def test_nothing_there(cache: Path, source: str) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        open_checkpoint(source, cache=cache)
    assert caught.value.exit_code == 2
    assert "org/name" in caught.value.hint


@pytest.mark.parametrize("source", ["demo", "./missing", None])
def test_revision_is_for_the_hub_only(tiny: Path, cache: Path, source: str | None) -> None:
    with pytest.raises(UsageError, match="--revision is for checkpoints from the Hub"):
        open_checkpoint(source or str(tiny), revision="main", cache=cache)


def test_another_kind_of_file(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file"):
        open_checkpoint(str(path), cache=cache)


def test_describing_a_checkpoint_needs_no_torch(tiny: Path, cache: Path) -> None:
    program = (
        "import sys; from sdrt.checkpoint import open_checkpoint, tokenizer_json; from pathlib import Path;"
        "tokenizer_json(open_checkpoint(sys.argv[1], cache=Path(sys.argv[2])));"
        "print({'torch', 'diffusers', 'transformers', 'safetensors', 'numpy'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tiny), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"
