"""A checkpoint's recommended guidance scale applies by default, from generation_config.json to the picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sdrt.export
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import MANIFEST
from sdrt.artefacts.store import Store
from sdrt.checkpoint import Checkpoint
from sdrt.checkpoint import open_checkpoint as opened
from sdrt.export.components import model_record
from sdrt.pipeline import Pipeline
from sdrt.plots.model import Model
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from sdrt.runtime.picture_queue import plan_runs
from sdrt.runtime.picture_record import read_record
from sdrt.runtime.prompt_file import Line
from sdrt.runtime.request import make_request
from tests.command_line import CommandLine, Ended
from tests.helpers.fixtures import Sets
from tests.models.tiny_bundle import tiny_bundle as write_bundle

RECOMMENDED = 3.0
SAID = "guidance scale 3, as the checkpoint recommends"

Denoise = Callable[..., Ended]


@pytest.fixture
def engines(hand_sets: Sets) -> EngineSet:
    return hand_sets(guidance_scale=RECOMMENDED)


@pytest.fixture
def denoise(sdrt: CommandLine, engines: EngineSet, tmp_path: Path, here: Path) -> Denoise:
    """Return a function that runs ``sdrt denoise`` for two steps on engines that recommend a guidance scale."""

    def run(*words: str | Path | int | float) -> Ended:
        given = ("--engines", engines.path, "--trust", engines.digest, "--store", tmp_path / "store")
        return sdrt("denoise", *given, "--steps", 2, "--seed", 1, "--json", *words)

    return run


def test_it_goes_from_the_checkpoint_into_the_bundle(tiny_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_path, folder)
    assert "guidance_scale" not in model_record(opened(str(folder))).model_dump(mode="json")
    (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": RECOMMENDED}))
    assert model_record(opened(str(folder))).model_dump(mode="json")["guidance_scale"] == RECOMMENDED


def test_a_checkpoint_that_recommends_another_is_exported_again(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(checkpoint: Checkpoint, out: Path, **_: object) -> None:
        write_bundle(out, guidance_scale=checkpoint.guidance_scale)

    monkeypatch.setattr(sdrt.export, "export_bundle", export, raising=False)
    folder, store = tmp_path / "checkpoint", Store(tmp_path / "store")
    shutil.copytree(tiny_path, folder)
    found = []
    for scale in (7.5, RECOMMENDED, 7.5):
        (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": scale}))
        bundle = open_bundle(Source(checkpoint=str(folder)), store)
        found.append(bundle.path)
        assert bundle.manifest.model.guidance_scale == scale
        assert ("guidance_scale" in (bundle.path / MANIFEST).read_text()) == (scale != 7.5)
    assert found[0] == found[2] != found[1]


def test_pictures_are_drawn_with_it_unless_another_is_asked(engines: EngineSet) -> None:
    with Pipeline(engines) as pipe:
        found = {
            scale: pipe("a red circle", seed=0, num_inference_steps=2, guidance_scale=scale)
            for scale in (None, RECOMMENDED, 7.5)
        }
    assert [result.records[0]["guidance_scale"] for result in found.values()] == [RECOMMENDED, RECOMMENDED, 7.5]
    assert np.array_equal(found[None].latents, found[RECOMMENDED].latents)
    assert not np.array_equal(found[None].latents, found[7.5].latents)


def test_lines_that_leave_it_open_go_with_those_that_ask_for_it(engines: EngineSet) -> None:
    lines = [
        Line(number, make_request("a", seed=number, guidance_scale=scale))
        for number, scale in enumerate((None, 7.5, RECOMMENDED, None), 1)
    ]
    with Pipeline(engines) as pipe:
        runs = plan_runs(pipe, lines)
    assert [[slot.line for slot in run.slots] for run in runs] == [[1, 3, 4], [2]]


def test_the_command_says_so(denoise: Denoise) -> None:
    left, asked = denoise("--prompt", "a"), denoise("--prompt", "a", "--guidance-scale", 7.5)
    assert (left.code, left.json["guidance_scale"], SAID in left.err) == (0, RECOMMENDED, True)
    assert (asked.code, asked.json["guidance_scale"], "recommends" in asked.err) == (0, 7.5, False)


def test_a_file_of_prompts_is_drawn_with_it(denoise: Denoise) -> None:
    lines = ({"prompt": "a"}, {"prompt": "a", "guidance_scale": 7.5})
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = denoise("--prompts", "prompts.jsonl")
    assert (ended.code, ended.err.count(SAID)) == (0, 1)
    scales = [read_record(Path(f"picture-000{number}.png"))["guidance_scale"] for number in (1, 2)]
    assert scales == [RECOMMENDED, 7.5]


def test_from_repeats_what_was_drawn_whatever_is_recommended(
    denoise: Denoise, hand_sets: Sets, sdrt: CommandLine, tmp_path: Path
) -> None:
    assert denoise("--prompt", "a").code == 0
    other = hand_sets()
    given = ("--engines", other.path, "--trust", other.digest, "--store", tmp_path / "store")
    ended = sdrt("denoise", *given, "--from", "picture.png", "--out", "again.png")
    assert ended.code == 0, ended.err
    assert "recommends" not in ended.err
    again, first = (read_record(Path(name)) for name in ("again.png", "picture.png"))
    assert (again["guidance_scale"], again["engines"] == first["engines"]) == (RECOMMENDED, False)


def test_plots_and_listings_know_it(engines: EngineSet, hand_sets: Sets, sdrt: CommandLine) -> None:
    with Model(engines) as model:
        assert [model.guidance_scale(asked) for asked in (None, 7.5)] == [RECOMMENDED, 7.5]
    assert "recommends guidance scale 3\n" in sdrt("inspect", engines.path).out
    assert "recommends" not in sdrt("inspect", hand_sets().path).out
    assert sdrt("inspect", engines.path, "--json").json["guidance_scale"] == RECOMMENDED
