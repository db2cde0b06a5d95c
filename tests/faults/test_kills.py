"""SIGKILL at every file operation of each of sdrt's ways to write to disk: whole before and whole after.

After each kill either the old or the new content is visible, never a part, and the next call succeeds and leaves
exactly the files of an undisturbed call.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdrt.artefacts.store import Store
from tests.doubles.engine_sets import KEY, make_set
from tests.faults import actions
from tests.faults.killer import Ended, Killer, tree

Check = Callable[[Path], None]


def kill_everywhere(
    killer: Killer, place: Path, call: str, arguments: list[str], start: Check, visible: Check, least: int
) -> Ended:
    """Kill a call before each of its operations, each time from the same start; return its undisturbed end.

    Args:
        killer: The server.
        place: A folder, in copies of which the calls run.
        call: A function of tests.faults.actions.
        arguments: Its arguments, relative to the folder.
        start: Creates the state before the call.
        visible: Checks the visible state of the folder after a kill.
        least: Least number of operations.
    """

    def fresh(name: str) -> Path:
        folder = place / name
        folder.mkdir()
        start(folder)
        return folder

    function = f"tests.faults.actions:{call}"
    undisturbed = fresh("undisturbed")
    whole = killer(function, *arguments, folder=undisturbed)
    assert whole.code == 0, whole.err
    assert len(whole.operations) >= least, whole.operations
    for number, operation in enumerate(whole.operations):
        folder = fresh(str(number))
        assert killer(function, *arguments, folder=folder, operation=number).killed, operation
        visible(folder)
        again = killer(function, *arguments, folder=folder)
        assert again.code == 0, (operation, again.err)
        visible(folder)
        assert tree(folder) == tree(undisturbed), operation
        shutil.rmtree(folder)
    return whole


def test_row_33_a_file_is_the_old_or_the_new(killer: Killer, tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        (folder / "file").write_bytes(b"old")

    def visible(folder: Path) -> None:
        assert (folder / "file").read_bytes() in (b"old", b"new" * 100)

    kill_everywhere(killer, tmp_path, "write", ["file"], start, visible, least=3)


@pytest.mark.parametrize("call", ["publish", "publish_without_exchange"])
def test_row_33_a_folder_is_the_old_or_the_new(killer: Killer, tmp_path: Path, call: str) -> None:
    def start(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "old").write_text("old")

    def visible(folder: Path) -> None:
        if call == "publish" or (folder / "out").exists():
            assert tree(folder / "out") in (["old"], ["below", "below/file", "file"])
        else:
            # Between the two renames that replace an exchange; the next call first restores the folder.
            (aside,) = folder.glob(".old-*/out/old")
            assert aside.read_text() == "old"

    kill_everywhere(killer, tmp_path, call, ["out"], start, visible, least=8)


def test_row_33_what_was_moved_aside_comes_back_by_itself(killer: Killer, tmp_path: Path) -> None:
    """Kill at the one moment without anything at the name: any later write beside it restores the old folder."""
    for number in range(40):
        folder = tmp_path / str(number)
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "old").write_text("old")
        killer("tests.faults.actions:publish_without_exchange", "out", folder=folder, operation=number)
        if not (folder / "out").exists():
            break
    assert not (folder / "out").exists()
    assert killer("tests.faults.actions:write", "file", folder=folder).code == 0
    assert tree(folder) == ["file", "out", "out/old", "tmp"]


def test_row_32_a_sealed_cache_is_whole(killer: Killer, tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        actions.seal(str(folder / "timing" / "cache"))

    def visible(folder: Path) -> None:
        assert (folder / "timing" / "cache").read_bytes()[64:] in (b"new", b"newnew", b"newnewnew")

    kill_everywhere(killer, tmp_path, "seal", ["timing/cache"], start, visible, least=8)


def sound_or_absent(folder: Path) -> None:
    store = Store(folder / "store")
    target = store.engines_path(actions.BACKEND, KEY)
    assert store.verify() in ({}, {target: None})


def test_row_32_a_build_on_a_cold_store(killer: Killer, tmp_path: Path) -> None:
    kill_everywhere(killer, tmp_path, "build", ["store"], lambda _: None, sound_or_absent, least=25)


def test_row_32_a_build_in_place_of_what_is_broken(killer: Killer, tmp_path: Path) -> None:
    def start(folder: Path) -> None:
        actions.build(str(folder / "store"))
        actions.spoil(folder / "store")

    def visible(folder: Path) -> None:
        store = Store(folder / "store")
        target = store.engines_path(actions.BACKEND, KEY)
        broken = (target / "manifest.json").exists() and (target / "manifest.json").read_text() == "{}"
        quarantined = list((store.root / "quarantine").glob(f"*/{KEY}"))
        # Never deleted: it is in its place or in quarantine, once.
        assert broken + len(quarantined) == 1
        assert broken or store.verify() in ({}, {target: None})

    def start_again(folder: Path) -> None:
        start(folder)

    # The names in quarantine are unique; their number must be right.
    whole = None
    for number in (None, *range(60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        start_again(folder)
        ended = killer("tests.faults.actions:build", "store", folder=folder, operation=number)
        if number is None:
            whole = ended
            continue
        if not ended.killed:
            break
        visible(folder)
        assert killer("tests.faults.actions:build", "store", folder=folder).code == 0
        visible(folder)
        assert len(tree(folder)) == len(tree(tmp_path / "None")), (number, tree(folder))
        shutil.rmtree(folder)
    assert whole is not None
    assert number == len(whole.operations) > 30


def test_row_32_an_import(killer: Killer, tmp_path: Path) -> None:
    digest = make_set(tmp_path / "carried")
    arguments = ["store", str(tmp_path / "carried"), digest]
    kill_everywhere(killer, tmp_path, "carry", arguments, lambda _: None, sound_or_absent, least=25)


def test_row_32_a_collection(killer: Killer, tmp_path: Path) -> None:
    kill_everywhere(
        killer, tmp_path, "collect", ["store"], lambda folder: actions.build(str(folder / "store")), sound_or_absent, 8
    )


def test_the_killer_kills_where_it_is_told(killer: Killer, tmp_path: Path) -> None:
    """Find the old file after a kill just before a rename, and the new one after a kill just after it."""
    call = "tests.faults.actions:write"
    operations = killer(call, "file", folder=tmp_path).operations
    (rename,) = [number for number, operation in enumerate(operations) if operation.startswith("os.rename")]
    for number, content in ((rename, b"old"), (rename + 1, b"new" * 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_bytes(b"old")
        assert killer(call, "file", folder=folder, operation=number).killed
        assert (folder / "file").read_bytes() == content
