"""A checkpoint's trees agree with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdrt.checkpoint import Checkpoint, open_checkpoint
from sdrt.errors import CheckpointError
from sdrt.inspect.checkpoint import examine_checkpoint


@pytest.fixture
def copied(tiny_path: Path, tmp_path: Path) -> Path:
    """Copy the tiny checkpoint."""
    return Path(shutil.copytree(tiny_path, tmp_path / "copy"))


def opened(folder: Path, cache: Path) -> Checkpoint:
    return open_checkpoint(str(folder), cache=cache)


def test_files_and_trees_agree(tiny_path: Path, tmp_path: Path) -> None:
    found = examine_checkpoint(opened(tiny_path, tmp_path))
    assert list(found["components"]) == ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
    assert found["parameters"] == sum(facts["parameters"] for facts in found["components"].values())
    file = found["files"]["unet"]
    assert file["parameters"] == found["components"]["unet"]["parameters"]
    assert file["size_bytes"] == 4 * file["parameters"]
    assert set(file["dtypes"]) == {"F32"}
    assert found["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "layers_per_block", 2),
        ("vae", "layers_per_block", 2),
        ("text_encoder", "num_hidden_layers", 3),
        ("vae", "use_quant_conv", False),
    ],
)
def test_a_config_of_other_weights_is_refused(copied: Path, part: str, field: str, value: object) -> None:
    path = copied / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=rf"weights; {part}/config\.json requires"):
        examine_checkpoint(opened(copied, copied.parent))
