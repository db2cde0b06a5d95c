"""Progress: bars on a terminal, lines elsewhere, nothing when silent; never on stdout."""

from __future__ import annotations

import os
import sys

import pytest

from sdrt.progress import Bars, Lines, Progress, for_terminal, silent
from tests.doubles.terminal import Terminal


def work(progress: Progress) -> None:
    with progress.stage("outer", 2) as advance:
        advance(1)
        with progress.stage("inner") as advance_inner:
            advance_inner(3)
        progress.note("a [bold]remark[/bold]")
        advance(1)


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    work(silent)
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    work(Lines())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:2] == ["outer ...", "inner ..."]
    assert lines[3] == "a [bold]remark[/bold]"
    assert lines[2].startswith("inner: ")
    assert lines[4].startswith("outer: ")
    assert lines[4].endswith(" s")


def test_a_closed_stderr_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:  # noqa: PTH123  # a descriptor
        monkeypatch.setattr(sys, "stderr", closed)
        work(Lines())
        # The buffered text must not be written again when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)


def test_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(for_terminal(), Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(for_terminal(), Bars)


def test_bars_show_stages_and_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = for_terminal()
    work(progress)
    work(progress)
    shown = terminal.getvalue()
    assert "outer" in shown
    assert "inner" in shown
    assert shown.count("a [bold]remark[/bold]") == 2
    assert capsys.readouterr().out == ""


def test_a_stage_that_comes_again_takes_its_rows_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    bars = Bars()
    with bars.stage("pictures", 20) as advance:
        for _ in range(20):
            with bars.stage("denoise", 2) as step, bars.stage("denoise", 1):
                step(1)
            advance(1)
        # Two bars with one name were open at a time.
        assert [task.description for task in bars._bars.tasks] == ["pictures", "denoise", "denoise"]
    assert bars._bars.tasks == []


def test_bars_let_errors_through_and_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = for_terminal()

    def fail() -> None:
        with progress.stage("doomed", 3):
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        fail()
    work(progress)
