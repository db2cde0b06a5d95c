"""A tiny checkpoint, and copies of it to damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.changes import Edit


@pytest.fixture
def tiny(tiny_path: Path) -> Path:
    """Return a complete checkpoint; read-only."""
    return tiny_path


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """Copy it for a test to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def edit(copy: Path) -> Edit:
    """Return a function that changes values of one of the copy's JSON files."""

    def change(name: str, values: dict[str, Any]) -> None:
        path = copy / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the path of an empty cache folder."""
    return tmp_path / "cache"
