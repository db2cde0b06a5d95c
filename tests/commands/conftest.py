"""Fixtures of the commands' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdrt.artefacts.engine_set import EngineSet
from tests.command_line import CommandLine, Ended


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def denoise(sdrt: CommandLine, hand_sets: Callable[..., EngineSet], tmp_path: Path, here: Path) -> Callable[..., Ended]:
    """Return a function that runs ``sdrt denoise`` on engines of hand-written graphs, in an empty folder."""
    engines = hand_sets()

    def run(*words: str | Path | int | float) -> Ended:
        given = ("--engines", engines.path, "--trust", engines.digest, "--store", tmp_path / "store")
        return sdrt("denoise", *given, *words)

    return run
