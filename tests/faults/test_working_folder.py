"""A removed working folder: absolute paths work, relative ones are refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.commands.paths import OutputFile, OutputFolder
from sdrt.errors import ResourceError
from sdrt.files import folder_published_as, write_atomically
from sdrt.pipeline import Pipeline
from sdrt.runtime.picture_record import read_record
from tests.faults.killer import Killer, tree
from tests.helpers.click_parameters import parameters


def answers(killer: Killer, asked: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """Run command lines in a removed folder; return exit codes and the one line of each error."""
    assert killer("tests.faults.actions:each_in_a_folder_that_is_gone", asked, folder=folder).code == 0
    found = []
    for words, (code, err) in zip(asked, json.loads((folder / "answers.json").read_text()), strict=True):
        said = [line for line in err.splitlines() if line.startswith("sdrt: ")]
        assert len(said) == (code != 0), f"{words}: {err}"
        found.append((code, "".join(said)))
    return found


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in a removed folder."""
    before = Path.cwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    yield
    os.chdir(before)


def test_every_output_is_refused_before_work_starts(killer: Killer, tmp_path: Path) -> None:
    lines = [
        [*words, parameter.opts[0], "x"]
        for words, parameter in parameters()
        if isinstance(parameter, click.Option) and isinstance(parameter.type, OutputFile | OutputFolder)
    ]
    assert len(lines) > 10
    for line, (code, said) in zip(lines, answers(killer, lines, tmp_path), strict=True):
        assert code == 2, f"{line}: {said}"
        assert f"{line[-2]}: the working folder is gone" in said


def test_absolute_paths_make_a_picture(killer: Killer, bundle: Bundle, ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "store")
    words = ["denoise", "--bundle", str(bundle.path), "--backend", "onnxruntime", "--prompt", "a", "--steps", "1"]
    store, picture = str(tmp_path / "store"), tmp_path / "picture.png"
    build = ["build", str(bundle.path), "--backend", "onnxruntime", "--out", str(tmp_path / "set")]
    lines = [
        [*words, "--store", store, "--out", str(picture)],
        [*build, "--store", store],
        ["store", "list", "--store", store],
        ["info", str(picture)],
        [*words, "--store", "store", "--out", str(picture)],
        [*words, "--store", store, "--out", str(picture), "--strength", "1", "--init-image", "picture.png"],
    ]
    found = answers(killer, lines, tmp_path)
    assert [code for code, _ in found] == [0, 0, 0, 0, 6, 3]
    assert found[4][1] == "sdrt: the working folder is gone (change to a folder that exists)"
    assert read_record(picture)["seed"] >= 0
    assert "set/manifest.json" in tree(tmp_path)


@pytest.mark.usefixtures("gone")
def test_from_python(bundle: Bundle) -> None:
    with pytest.raises(ResourceError, match="the working folder is gone"):
        write_atomically(Path("file"), b"")
    with pytest.raises(ResourceError, match="the working folder is gone"), folder_published_as(Path("folder")):
        pass
    with pytest.raises(ResourceError, match="the working folder is gone"):
        Pipeline.load(bundle=bundle.path, backend="onnxruntime", store="store")
