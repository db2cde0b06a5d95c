"""A record's checkpoint is found by its weights, from any source that held them, and by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.manifest import CheckpointRecord
from sdrt.checkpoint import open_checkpoint, sources
from sdrt.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sdrt.checkpoint.digests import REMEMBERED_FILES, REMEMBERED_PLACES, DigestMemory, Places
from sdrt.checkpoint.places import find_recorded

Edit = Callable[[str, dict[str, Any]], None]


def record(checkpoint: Checkpoint, **changes: Any) -> CheckpointRecord:
    held = {"name": checkpoint.name, "digest": checkpoint.digest, "revision": checkpoint.revision}
    return CheckpointRecord(**held | changes)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder without checkpoints."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)


def test_an_opened_folder_is_found_from_anywhere(copy: Path, cache: Path) -> None:
    made = record(open_checkpoint(f"../{copy.name}", cache=cache))
    assert made.name == "copy"
    assert find_recorded(made, cache=cache) == (str(Path.cwd() / "../copy"), None)


def test_a_link_is_found_by_the_name_of_its_target(copy: Path, cache: Path) -> None:
    Path("link").symlink_to(copy)
    made = record(open_checkpoint("link", cache=cache))
    assert made.name == "copy"
    assert find_recorded(made, cache=cache) == (str(Path.cwd() / "link"), None)


def test_a_single_file_is_found_too(copy: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path, _cache: Path, memory: DigestMemory) -> Checkpoint:
        return read_checkpoint(copy, name=path.stem, memory=memory)

    monkeypatch.setattr("sdrt.checkpoint.single_file.open_single_file", opened)
    (tmp_path / "model.v2.safetensors").write_bytes(b"")
    made = record(open_checkpoint("../model.v2.safetensors", cache=cache))
    assert made.name == "model.v2"
    assert find_recorded(made, cache=cache) == (str(Path.cwd() / "../model.v2.safetensors"), None)
    # By its name alone, if nothing is remembered.
    Path("model.v2.safetensors").write_bytes(b"")
    assert find_recorded(made, cache=tmp_path / "empty") == ("model.v2.safetensors", None)


def test_the_first_one_may_be_gone(copy: Path, tmp_path: Path, cache: Path) -> None:
    first = record(open_checkpoint(str(copy), cache=cache))
    second = copy.rename(tmp_path / "second")
    assert find_recorded(first, cache=cache) is None
    open_checkpoint(str(second), cache=cache)
    assert find_recorded(first, cache=cache) == (str(second), None)


def test_of_equal_ones_that_of_the_records_name_is_taken(copy: Path, tmp_path: Path, cache: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    opened = [record(open_checkpoint(str(folder), cache=cache)) for folder in (copy, other)]
    assert opened[0].digest == opened[1].digest
    for made, folder in zip(opened, (copy, other), strict=True):
        assert find_recorded(made, cache=cache) == (str(folder), None)


def test_of_the_same_name_that_with_the_same_weights_is_taken(copy: Path, cache: Path, edit: Edit) -> None:
    made = record(open_checkpoint(str(copy), cache=cache))
    here = Path(shutil.copytree(copy, "copy"))
    # The remembered one has changed since; the one here has not.
    edit("scheduler/scheduler_config.json", {"beta_start": 0.001})
    assert find_recorded(made, cache=cache) == ("copy", None)
    # The other way round.
    shutil.rmtree(here)
    shutil.copytree(copy, here)
    edit("scheduler/scheduler_config.json", {"beta_start": 0.00085})
    assert find_recorded(made, cache=cache) == (str(copy), None)
    # Neither: the name decides, and opening it shows that the weights differ.
    edit("scheduler/scheduler_config.json", {"beta_start": 0.002})
    assert find_recorded(made, cache=cache) == (str(copy), None)


def test_what_is_malformed_by_now_is_passed_over(copy: Path, tmp_path: Path, cache: Path) -> None:
    made = record(open_checkpoint(str(copy), cache=cache))
    shutil.copytree(copy, "copy")
    (copy / "model_index.json").write_text("no JSON")
    (copy / "unet" / "config.json").write_text("no JSON")
    assert find_recorded(made, cache=cache) == ("copy", None)


def test_the_demo_and_a_folder_of_that_name(copy: Path, tmp_path: Path, cache: Path) -> None:
    assert find_recorded(record(open_checkpoint("demo", cache=cache)), cache=cache) == ("demo", None)
    mine = copy.rename("demo")
    made = record(open_checkpoint("./demo", cache=cache))
    assert find_recorded(made, cache=cache) == (str(mine.absolute()), None)
    assert find_recorded(record(open_checkpoint("demo", cache=cache)), cache=cache) == ("demo", None)


def test_a_checkpoint_of_the_hub_is_named_by_its_commit(cache: Path) -> None:
    made = CheckpointRecord(name="org/model", digest="ab" * 32, revision="1" * 40)
    assert find_recorded(made, cache=cache) == ("org/model", "1" * 40)
    # A folder of that name is what the name means here.
    Path("org/model").mkdir(parents=True)
    assert find_recorded(made, cache=cache) == ("org/model", None)


def test_nothing_is_found_where_nothing_is(cache: Path) -> None:
    for name in ("copy", "org/model", "/nowhere/at/all", "." * 300, "\0"):
        assert find_recorded(CheckpointRecord(name=name, digest="ab" * 32), cache=cache) is None


# The memory.


def test_the_last_place_comes_first_and_so_many_are_kept(cache: Path) -> None:
    places = Places(cache)
    for number in (*range(REMEMBERED_PLACES + 2), 5):
        places.remember("ab" * 32, Path(f"/{number}"))
    found = [path.name for path in places.of("ab" * 32)]
    assert found[:3] == ["5", str(REMEMBERED_PLACES + 1), str(REMEMBERED_PLACES)]
    assert len(found) == len(set(found)) == REMEMBERED_PLACES
    for number in range(REMEMBERED_FILES + 2):
        places.remember(f"{number:064x}", Path("/a"))
    assert len(json.loads(places.path.read_bytes())) == REMEMBERED_FILES
    assert places.of("ab" * 32) == []


def test_what_is_known_is_not_written_again(copy: Path, cache: Path) -> None:
    for _ in range(2):
        open_checkpoint(str(copy), cache=cache)
        written = (cache / "places.json").stat().st_mtime_ns, (cache / "places.json").stat().st_ino
    open_checkpoint(str(copy), cache=cache)
    assert ((cache / "places.json").stat().st_mtime_ns, (cache / "places.json").stat().st_ino) == written


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"ab": ["\\u0000", 1, null]}', "{" * 5000])
def test_a_damaged_memory_is_started_anew(text: str, copy: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "places.json").write_text(text)
    made = record(open_checkpoint(str(copy), cache=cache))
    assert find_recorded(made, cache=cache) == (str(copy), None)


def test_a_cache_that_cannot_be_written_stops_nothing(copy: Path, cache: Path) -> None:
    cache.write_text("a file in its place")
    made = record(open_checkpoint(str(copy), cache=cache))
    assert find_recorded(made, cache=cache) is None


def test_names_that_are_not_utf8_are_kept(copy: Path, tmp_path: Path, cache: Path) -> None:
    odd = copy.rename(tmp_path / "odd\udcff")
    digest = sources.open_checkpoint(str(odd), cache=cache).digest
    assert Places(cache).of(digest) == [odd]
