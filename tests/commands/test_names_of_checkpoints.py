"""Records name the requested checkpoint even if an equal one was exported before; --from finds it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import CheckpointRecord
from sdrt.artefacts.store import Store
from sdrt.commands.denoise_repeat import with_record
from sdrt.errors import CheckpointError
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import open_engines, prepare
from sdrt.prepare.source import Source
from sdrt.runtime.picture_record import picture_record as made_record
from sdrt.runtime.picture_record import read_record
from sdrt.runtime.request import make_request
from tests.command_line import CommandLine
from tests.helpers.denoise_options import options
from tests.helpers.records import picture_record

COMMIT = "1" * 40
Opened = Callable[..., EngineSet]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the checkpoints that other tests opened."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(tiny_engines: Opened, store: Store, here: Path) -> Opened:
    """Return a function that opens engines if those of a checkpoint named tiny are in the store."""
    tiny_engines("onnxruntime", "fp32")

    def open_source(**named: Any) -> EngineSet:
        source = Source(**named)
        if source.engines:
            return open_engines(source, backend="onnxruntime", store=store.root)
        return prepare(source, Choice("onnxruntime"), store=store.root, build=False)

    return open_source


def recorded(engines: EngineSet) -> CheckpointRecord:
    """Return the checkpoint that records of the engines' pictures name."""
    request = make_request("a", seed=0)
    record = made_record(engines, request, request.pictures, 0, {})
    return CheckpointRecord.model_validate(record["checkpoint"])


def repeated(record: CheckpointRecord, **given: Any) -> dict[str, Any]:
    """Return the checkpoint that --from opens for a record."""
    merged = with_record(options(**given), picture_record(checkpoint=record.model_dump(mode="json")))
    return {name: getattr(merged, name) for name in ("checkpoint", "revision", "bundle") if getattr(merged, name)}


def test_a_picture_names_the_second_and_is_repeated(
    sdrt: CommandLine, opened: Opened, tiny_path: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_path, "models/second")
    common = ("--store", store.root, "--backend", "onnxruntime", "--no-build")
    drawn = ("--prompt", "a", "--steps", 1, "--seed", 0, "--json")
    ended = sdrt("denoise", "--checkpoint", "models/second", *common, *drawn)
    assert ended.json["checkpoint"] == "second"
    assert read_record(Path("picture.png"))["checkpoint"]["name"] == "second"
    with Image.open("picture.png") as picture:
        assert "Model: second" in picture.text["parameters"]  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    ended = sdrt("denoise", "--from", "here/picture.png", *common, "--out", "again.png")
    assert ended.code == 0, ended.err
    assert Path("again.png").read_bytes() == Path("here/picture.png").read_bytes()


@pytest.mark.parametrize("place", ["second", "models/sub/second"])
def test_an_equal_folder_is_named_and_found(
    opened: Opened, tiny_path: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_path, place)
    engines = opened(checkpoint=place)
    second = recorded(engines)
    assert (second.name, engines.manifest.checkpoint.name) == ("second", "tiny")
    assert second.digest == engines.manifest.checkpoint.digest
    monkeypatch.chdir(tmp_path)
    assert repeated(second) == {"checkpoint": str(tmp_path / "here" / place)}
    assert recorded(opened(**repeated(second))) == second
    # The exported checkpoint keeps its name.
    first = recorded(opened(checkpoint=str(tiny_path)))
    assert first.name == "tiny"
    assert repeated(first) == {"checkpoint": str(tiny_path)}
    # A record of a removed checkpoint leads to one with the same weights.
    shutil.rmtree(tmp_path / "here" / place)
    assert repeated(second) == {"checkpoint": str(tiny_path)}


def test_a_link_to_it_and_the_folder_that_is_current(
    opened: Opened, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_path, "second")
    Path("link").symlink_to("second")
    assert recorded(opened(checkpoint="link")).name == "second"
    monkeypatch.chdir("second")
    assert recorded(opened(checkpoint=".")).name == "second"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_checkpoint_of_the_hub_is_named_with_its_commit(
    opened: Opened, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    root = tmp_path / "hub" / "models--org--model"
    shutil.copytree(tiny_path, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = recorded(opened(checkpoint="org/model", revision=revision))
    assert (found.name, found.revision) == ("org/model", COMMIT)
    assert repeated(found) == {"checkpoint": "org/model", "revision": COMMIT}
    assert recorded(opened(**repeated(found))) == found
    assert repeated(found, revision="other") == {"checkpoint": "org/model", "revision": "other"}


def test_a_place_that_is_named_stands(opened: Opened) -> None:
    made = CheckpointRecord(name="nowhere", digest="ab" * 32)
    assert repeated(made, checkpoint="mine") == {"checkpoint": "mine"}
    assert repeated(made, bundle=Path("mine")) == {"bundle": Path("mine")}
    with pytest.raises(CheckpointError, match="the checkpoint 'nowhere' is not here"):
        repeated(made)


def test_bundles_and_engines_keep_their_names(opened: Opened, tiny_bundle: Bundle) -> None:
    assert recorded(opened(bundle=tiny_bundle.path)) == tiny_bundle.manifest.checkpoint
    engines = opened(bundle=tiny_bundle.path)
    assert recorded(opened(engines=engines.path)) == tiny_bundle.manifest.checkpoint


@pytest.mark.parametrize("way", [{"precision": "int8"}, {"deepcache": True}], ids=repr)
def test_what_is_derived_of_a_bundle_goes_by_its_name(
    way: dict[str, Any], tiny_path: Path, tiny_bundle: Bundle, store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace quantising and cutting by doubles."""
    shutil.copytree(tiny_path, "second")
    for name in ("_quantised", "_cut"):
        monkeypatch.setattr(f"sdrt.prepare.bundles.{name}", lambda *_: tiny_bundle)
    assert open_bundle(Source(checkpoint="second"), store, **way).checkpoint.name == "second"
    assert open_bundle(Source(bundle=tiny_bundle.path), store, **way).checkpoint.name == "tiny"
