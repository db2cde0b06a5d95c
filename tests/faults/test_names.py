"""Names that are not UTF-8: reading, building and writing below them works as elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.checkpoint import open_checkpoint
from sdrt.runtime.picture_record import read_record
from tests.command_line import CommandLine
from tests.faults.killer import Killer

#: "modèle" in Latin-1.
ODD = os.fsdecode(b"mod\xe8le")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in its own folder; return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bundle_a_store_and_pictures(killer: Killer, bundle: Bundle, ready: Path, here: Path) -> None:
    shutil.copytree(bundle.path, here / ODD)
    shutil.copytree(ready, here / "store")
    words = ("denoise", "--prompt", "a", "--seed", "1", "--steps", "2", "--backend", "onnxruntime")
    for folder, store, out in ((bundle.path, "store", "plain.png"), (ODD, f"{ODD}-store", f"{ODD}.png")):
        ended = killer.sdrt(*words, "--bundle", folder, "--store", store, "--out", out, folder=here)
        assert ended.code == 0, ended.err
    assert read_record(here / f"{ODD}.png")["seed"] == 1
    with Image.open(here / "plain.png") as plain, Image.open(here / f"{ODD}.png") as odd:
        assert odd.tobytes() == plain.tobytes()
    ended = killer.sdrt(*words, "--bundle", f"{ODD}-2", "--store", "store", folder=here)
    assert ended.code == 3
    assert r"mod\xe8le-2/manifest.json" in ended.err


def test_a_checkpoint_is_exported_as_under_another_name(
    sdrt: CommandLine, tiny_path: Path, tiny_bundle: Bundle, here: Path
) -> None:
    shutil.copytree(tiny_path, here / ODD)
    ended = sdrt("export", "--checkpoint", ODD, "--components", "vae_decoder", "--out", f"{ODD}-bundle", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["path"] == f"{ODD}-bundle"
    made = Bundle.open(here / f"{ODD}-bundle")
    assert made.manifest.checkpoint.name == r"mod\xe8le"
    assert made.manifest.checkpoint.digest == tiny_bundle.manifest.checkpoint.digest
    decoder = made.manifest.components["vae_decoder"]
    for name in filter(None, (decoder.graph, decoder.weights)):
        assert made.manifest.files[name] == tiny_bundle.manifest.files[name]


def test_a_checkpoint_is_looked_into(sdrt: CommandLine, tiny_path: Path, here: Path) -> None:
    shutil.copytree(tiny_path, here / ODD)
    assert open_checkpoint(ODD).name == r"mod\xe8le"
    ended = sdrt("inspect", ODD, "--html", f"{ODD}.html", "--drawing", f"{ODD}.svg", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["wrote"] == [f"{ODD}.svg", f"{ODD}.html"]
    assert r"mod\xe8le" in (here / f"{ODD}.html").read_text() + (here / f"{ODD}.svg").read_text()
    assert sdrt("plot", "sigmas", "--checkpoint", ODD, "--out", f"{ODD}-plot.svg").code == 0
    assert r"mod\xe8le" in (here / f"{ODD}-plot.svg").read_text()
    assert "does not exist" in sdrt("inspect", f"{ODD}-2").complaint
