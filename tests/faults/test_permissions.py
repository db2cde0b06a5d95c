"""Missing permissions, in every command and for every option that takes a path: one line, to read and to write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from sdrt.checkpoint.sources import DEMO_FOLDER
from sdrt.commands.paths import InputName, InputPath, OutputFile, OutputFolder
from sdrt.errors import ResourceError
from sdrt.pipeline import Pipeline
from sdrt.runtime.images import write_png
from sdrt.runtime.init_image import open_picture
from sdrt.runtime.picture_record import read_record
from sdrt.runtime.prompt_file import read_prompt_file
from sdrt.sampling.latents import load_latents, save_latents
from tests.faults.killer import Killer, tree
from tests.helpers.click_parameters import parameters

PATHS = (InputName, InputPath, OutputFile, OutputFolder)
LOOKING = (
    ("store", "list", "--store", "store"),
    ("store", "verify", "--store", "store"),
    ("store", "gc", "--store", "store"),
)
RECORD = {
    "prompt": "a",
    "negative_prompt": "",
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "seed": 0,
    "checkpoint": {"name": "demo"},
}
#: Metavars or names of parameters that take a path.
WORDS = {"DIR", "FILE", "FILE.png", "C", "checkpoint", "bundle", "engines", "folder", "picture", "store"}


def answers(killer: Killer, asked: Sequence[tuple[Path, Sequence[object]]], folder: Path) -> list[tuple[int, str]]:
    """Run command lines without root's rights, each with one path closed to everybody.

    Returns:
        Exit codes and the one line of each error; empty without an error.
    """
    lines = [(str(closed), [str(word) for word in words]) for closed, words in asked]
    assert killer("tests.faults.actions:each_unprivileged", lines, folder=folder).code == 0
    found = []
    for (closed, words), (code, err) in zip(lines, json.loads((folder / "answers.json").read_text()), strict=True):
        said = [line for line in err.splitlines() if line.startswith("sdrt: ")]
        assert len(said) == (code != 0), f"{closed}, {words}: {err}"
        assert not said or err.endswith(f"{said[0]}\n"), f"{closed}, {words}: {err}"
        found.append((code, "".join(said)))
    return found


def refused(killer: Killer, asked: Sequence[tuple[Path, Sequence[object]]], folder: Path) -> None:
    """Assert that every command line ends with a permission error that names the closed path."""
    for (closed, words), (code, said) in zip(asked, answers(killer, asked, folder), strict=True):
        assert code == 6, f"{closed}, {words}: {said}"
        assert closed.name in said, f"{closed}, {words}: {said}"
        assert "permission" in said, f"{closed}, {words}: {said}"


def test_whatever_takes_a_path_has_a_type_that_checks_it() -> None:
    for words, parameter in parameters():
        named = {*(parameter.metavar or "").replace("[", "|").replace("]", "|").split("|"), parameter.name}
        if named & WORDS or isinstance(parameter.type, click.Path):
            assert isinstance(parameter.type, PATHS), f"{words}: {parameter.name}"


def test_every_option_that_takes_a_path_below_a_closed_folder(killer: Killer, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    lines, codes = [], []
    for words, parameter in parameters():
        if isinstance(parameter.type, PATHS):
            option = parameter.opts[:1] if isinstance(parameter, click.Option) else []
            lines.append((closed, [*words, *option, "closed/x"]))
            codes.append(2 if isinstance(parameter.type, OutputFile | OutputFolder) else 6)
    assert len(lines) > 60
    for line, code, (found, said) in zip(lines, codes, answers(killer, lines, tmp_path), strict=True):
        assert found == code, f"{line}: {said}"
        assert "closed" in said, f"{line}: {said}"
        assert "permission" in said, f"{line}: {said}"
    assert tree(tmp_path) == ["answers.json", "closed", "tmp"]


def test_everything_in_a_checkpoint(killer: Killer, tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "checkpoint")
    inside = [path for path in (tmp_path / "checkpoint").rglob("*") if path.suffix != ".md"]
    refused(killer, [(path, ("inspect", "checkpoint")) for path in inside], tmp_path)


def test_everything_in_a_bundle(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    words = ("denoise", "--bundle", "bundle", "--backend", "onnxruntime", "--store", "store", "--prompt", "a")
    refused(killer, [(path, words) for path in (tmp_path / "bundle").rglob("*")], tmp_path)


def test_everything_in_an_engine_set(killer: Killer, ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "store")
    (engines,) = (tmp_path / "store" / "engines").glob("*/*")
    words = ("denoise", "--engines", engines, "--store", "store", "--prompt", "a", "--steps", 1)
    # An engine is read when opened, and the encoder is not opened.
    opened = (path for path in engines.rglob("*") if path.parent.name != "vae_encoder")
    refused(killer, [(path, words) for path in (engines, *opened)], tmp_path)


def test_everything_in_a_store(killer: Killer, ready: Path, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "store")
    store = tmp_path / "store"
    (engines,) = (store / "engines").glob("*/*")
    build = ("build", bundle.path, "--backend", "onnxruntime", "--components", "vae_decoder", "--store", "store")
    reading = [(path, words) for path in (store, store / "engines", engines.parent, engines) for words in LOOKING]
    writing = [(path, build) for path in (store, store / "locks", store / "staging", engines.parent)]
    refused(killer, [*reading, *writing], tmp_path)
    assert Store(store).open_engines(engines).path == engines


@pytest.mark.usefixtures("without_rights")
def test_from_python(bundle: Bundle, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    shutil.copytree(bundle.path, closed / "bundle")
    calls: dict[str, Callable[[Path], object]] = {
        "checkpoint": lambda path: Pipeline.load(str(path)),
        "bundle": lambda path: Pipeline.load(bundle=path, backend="onnxruntime"),
        "engines": lambda path: Pipeline.load(engines=path),
        "store": lambda path: Pipeline.load(bundle=bundle.path, backend="onnxruntime", store=path),
        "picture to start from": open_picture,
        "record": read_record,
        "latents": lambda path: load_latents(path, 1),
        "prompts": lambda path: read_prompt_file(path, {"seed": 0}),
        "picture to write": lambda path: write_png(Image.new("RGB", (8, 8)), path, RECORD),
        "latents to write": lambda path: save_latents(path, np.zeros((1, 4, 64, 64), np.float32)),
        "bundle itself": Bundle.open,
        "entries": lambda path: Store(path).entries(),
        "import": lambda path: Store(tmp_path / "store").import_engines(path, trust="0" * 64),
    }
    closed.chmod(0)
    try:
        for name, call in calls.items():
            with pytest.raises(ResourceError, match="permission") as caught:
                call(closed / "bundle")
            assert "closed" in caught.value.message, name
    finally:
        closed.chmod(0o700)
