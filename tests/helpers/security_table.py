"""Rows of the table in SECURITY.md, and of the tests named after them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE_ROW = re.compile(r"^\| (\d+) \|.*\| (.+) \|$", re.MULTILINE)
FILE = re.compile(r"`(tests/[\w/]+\.py)`")


def documented() -> dict[int, set[str]]:
    """Read files by row from the table."""
    _, _, section = (ROOT / "SECURITY.md").read_text().partition("## What is tested")
    return {int(row): set(FILE.findall(files)) for row, files in TABLE_ROW.findall(section)}


def covered(folder: str) -> dict[int, set[str]]:
    """Read files by row from the names of tests."""
    found = defaultdict(set)
    for path in (ROOT / "tests" / folder).glob("test_*.py"):
        for number in re.findall(r"^def test_row_(\d+)_", path.read_text(), re.MULTILINE):
            found[int(number)].add(path.relative_to(ROOT).as_posix())
    return found
