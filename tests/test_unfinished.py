"""Leftovers of killed processes are removed; files of living ones, and of others, stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdrt.unfinished import ASIDE_PREFIX, PART_PREFIX, is_abandoned, owner_name, sweep, try_exclusive


@pytest.fixture(scope="module")
def dead() -> str:
    """Return the owner's name of a process that has ended."""
    code = "from sdrt.unfinished import owner_name; print(owner_name())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_is_gone_is_told_by_the_name(dead: str) -> None:
    assert is_abandoned(dead)
    assert is_abandoned(f"{dead}x1")
    assert not is_abandoned(f"{owner_name()}x1")
    # This process's id, which another process had before.
    assert is_abandoned(f"{os.getpid()}-1-x")
    assert is_abandoned(f"{10**30}-1-x")
    for other in ("", "-", "somebody's folder", "\u0665-1-x"):
        assert not is_abandoned(other)


def test_only_what_the_dead_left_unfinished_goes(tmp_path: Path, dead: str) -> None:
    (tmp_path / f"{PART_PREFIX}{dead}file").write_text("half")
    (tmp_path / f"{PART_PREFIX}{dead}folder" / "below").mkdir(parents=True)
    stays = [f"{PART_PREFIX}{owner_name()}mine", f"{PART_PREFIX}x", f"{dead}x", "picture.png"]
    for name in stays:
        (tmp_path / name).write_text("whole")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(stays)


def test_what_was_moved_aside_comes_back_unless_it_was_replaced(tmp_path: Path, dead: str) -> None:
    for name in ("lost", "replaced"):
        (tmp_path / f"{ASIDE_PREFIX}{dead}{name}" / name).mkdir(parents=True)
        (tmp_path / f"{ASIDE_PREFIX}{dead}{name}" / name / "old").touch()
    (tmp_path / "replaced").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["lost", "replaced"]
    assert names(tmp_path / "lost") == ["old"]
    assert names(tmp_path / "replaced") == []


def test_what_a_process_elsewhere_holds_stays(tmp_path: Path, dead: str) -> None:
    # A file of another container over the same folder, where the id means another process, or none.
    held = tmp_path / f"{PART_PREFIX}{dead}file"
    held.touch()
    with try_exclusive(held) as unused:
        assert unused
        sweep(tmp_path)
        assert names(tmp_path) == [held.name]
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_pipes_and_links_of_such_a_name_do_no_harm(tmp_path: Path, dead: str) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / f"{PART_PREFIX}{dead}link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / f"{PART_PREFIX}{dead}pipe")
    sweep(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_folder_that_is_not_there_needs_no_sweeping(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")
