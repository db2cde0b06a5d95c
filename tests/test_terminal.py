"""Untrusted text on the terminal: in lines, in notes and in JSON."""

from __future__ import annotations

import json
import os

import pytest

from sdrt.commands.options import print_json
from sdrt.progress import Lines
from sdrt.terminal import printable

HOSTILE = "a\x1b[2J\x9b31m\x7f\r\nb\u2028\ud800"


def test_controls_are_spelled_out_and_all_else_stays() -> None:
    assert printable(HOSTILE) == r"a\x1b[2J\x9b31m\x7f\x0d\x0ab\x2028\xd800"
    assert printable(os.fsdecode(b"mod\xe8le")) == r"mod\xe8le"
    assert printable("grün 👩‍👩‍👧 \\x1b") == "grün 👩‍👩‍👧 \\x1b"


def test_notes_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    Lines().note(HOSTILE)
    assert capfd.readouterr().err == printable(HOSTILE) + "\n"


def test_json_says_the_same_and_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    value = {"name\x9b": HOSTILE.removesuffix("\ud800")}
    print_json(value)
    printed = capfd.readouterr().out
    assert json.loads(printed) == value
    assert not {"\x1b", "\x9b", "\x7f", "\r"} & set(printed)
