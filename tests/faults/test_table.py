"""The table of faults in SECURITY.md agrees with the tests."""

from __future__ import annotations

from tests.helpers.security_table import covered, documented

#: Rows of the fault matrix that are faults and need no server.
FAULTS = {*range(31, 42), *range(56, 73), 86, 87}


def test_every_row_of_faults_is_told_and_tested() -> None:
    rows, faults = documented(), covered("faults")
    assert faults.keys() == FAULTS
    for row in FAULTS:
        assert rows.get(row) == faults[row], f"row {row}"
