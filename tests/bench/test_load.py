from __future__ import annotations

import pytest

from sdrt.bench.bench import BUSY_LOAD, _warn_of_load
from tests.doubles.progress import Notes


@pytest.mark.parametrize(("load", "warned"), [(BUSY_LOAD + 0.1, True), (BUSY_LOAD - 0.1, False)])
def test_a_busy_machine_is_warned_of(load: float, warned: bool) -> None:
    notes = Notes()
    _warn_of_load({"load": str(load)}, notes)
    assert [note.startswith("warning: the load average is") for note in notes.notes] == [True] * warned


def test_a_system_without_a_load_is_taken_as_it_is() -> None:
    notes = Notes()
    _warn_of_load({}, notes)
    assert notes.notes == []
