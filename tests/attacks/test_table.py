"""The table of tests in SECURITY.md agrees with the tests."""

from __future__ import annotations

from tests.helpers.security_table import covered, documented

#: Rows of attacks; tests/faults/test_table.py has those of faults.
ATTACKS = {*range(1, 31), *range(42, 56), 85}


def test_every_row_of_attacks_is_told_and_tested() -> None:
    rows, attacks = documented(), covered("attacks")
    assert attacks.keys() == ATTACKS
    for row in ATTACKS:
        assert rows.get(row) == attacks[row], f"row {row}"


def test_what_the_table_names_is_there() -> None:
    found = covered("attacks")
    for row, files in covered("faults").items():
        found[row] |= files
    for row, files in documented().items():
        assert files <= found[row], f"row {row}"
        assert files, f"row {row} names no test"


def test_the_table_is_read() -> None:
    assert len(documented()) >= len(ATTACKS)
    assert documented()[11] == {"tests/attacks/test_graphs.py"}
