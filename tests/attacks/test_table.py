"""SECURITY.md's table of what is tested, held to the tests that there are."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE_ROW = re.compile(r"^\| (\d+) \|.*\| (.+) \|$", re.MULTILINE)
FILE = re.compile(r"`(tests/[\w/]+\.py)`")
#: Rows of attacks; those of faults are added by who tests them.
ATTACKS = {*range(1, 31), *range(42, 56), 85}


def told() -> dict[int, set[str]]:
    """Files by row, as the table has them."""
    _, _, section = (ROOT / "SECURITY.md").read_text().partition("## What is tested")
    return {int(row): set(FILE.findall(files)) for row, files in TABLE_ROW.findall(section)}


def held(folder: str) -> dict[int, set[str]]:
    """Files by row, as the tests are called."""
    found = defaultdict(set)
    for path in (ROOT / "tests" / folder).glob("test_*.py"):
        for number in re.findall(r"^def test_row_(\d+)_", path.read_text(), re.MULTILINE):
            found[int(number)].add(path.relative_to(ROOT).as_posix())
    return found


def test_every_row_of_attacks_is_told_and_tested() -> None:
    rows, attacks = told(), held("attacks")
    assert attacks.keys() == ATTACKS
    for row in ATTACKS:
        assert rows.get(row) == attacks[row], f"row {row}"


def test_what_the_table_names_is_there() -> None:
    found = held("attacks")
    for row, files in held("faults").items():
        found[row] |= files
    for row, files in told().items():
        assert files <= found[row], f"row {row}"
        assert files, f"row {row} names no test"


def test_the_table_is_read() -> None:
    assert len(told()) >= len(ATTACKS)
    assert told()[11] == {"tests/attacks/test_graphs.py"}
