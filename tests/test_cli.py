"""The command line as a whole: help, ways to end, and what goes to which stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sdrt as package
from sdrt.cli import COMMANDS
from sdrt.commands import export, info
from sdrt.errors import TimeLimitError
from sdrt.streams import STDOUT_HINT
from tests.command_line import CommandLine

SUBCOMMANDS = ("list", "verify", "import", "gc")
HELPS = [(), *((name,) for name in COMMANDS), *(("store", name) for name in SUBCOMMANDS)]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(words: tuple[str, ...], option: str, sdrt: CommandLine) -> None:
    ended = sdrt(*words, option)
    assert ended.code == 0
    assert ended.out.startswith("Usage: sdrt")
    assert ended.err == ""


def test_the_help_lists_every_command_and_exit_code(sdrt: CommandLine) -> None:
    shown = " ".join(sdrt("--help").out.split())
    for name, text in COMMANDS.items():
        assert f"{name} {text}" in shown
    for code in ("0 success", "2 usage", "3", "4", "5", "6", "7", "8", "130 interrupted"):
        assert code in shown


def test_the_version_is_the_packages(sdrt: CommandLine) -> None:
    assert package.__version__ in sdrt("--version").out


def test_no_command_shows_the_help_and_is_a_usage_error(sdrt: CommandLine) -> None:
    ended = sdrt()
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("Usage: sdrt")


@pytest.mark.parametrize("words", [("paint",), ("denoise", "--sampler", "1"), ("--verbose",), ("store", "sell")])
def test_unknown_words_are_usage_errors(words: tuple[str, ...], sdrt: CommandLine) -> None:
    ended = sdrt(*words)
    assert ended.code == 2
    assert words[1 if len(words) > 1 else 0] in ended.complaint
    assert "--help" in ended.complaint


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 6)])
def test_interruption_and_want_of_memory(
    error: type[BaseException], code: int, sdrt: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(export, "check_free", fail)
    ended = sdrt("export", "--out", tmp_path / "bundle")
    assert ended.code == code
    assert ended.complaint
    assert list(tmp_path.iterdir()) == []


def fail_with(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TimeLimitError(message, hint="wait")

    monkeypatch.setattr(export, "check_free", fail)


def test_an_error_is_one_line_whatever_its_message_holds(sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with("two\nlines\r\x1b[2J\x9b\u2028", monkeypatch)
    ended = sdrt("export", "--out", "bundle")
    assert ended.code == 7
    assert ended.complaint == "sdrt: two\\x0alines\\x0d\\x1b[2J\\x9b\\x2028 (wait)"


def test_debug_shows_the_traceback_and_keeps_the_code(sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with("late", monkeypatch)
    ended = sdrt("--debug", "export", "--out", "bundle")
    assert ended.code == 7
    assert "Traceback" in ended.err
    assert ended.err.endswith("sdrt: late (wait)\n")


def test_bugs_are_not_hidden(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(export, "check_free", fail)
    with pytest.raises(ZeroDivisionError):
        CommandLine(capfd)("export", "--out", "bundle")


def test_sigterm_ends_as_ctrl_c_does(sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export, "check_free", terminated)
    ended = sdrt("export", "--out", "bundle")
    assert (ended.code, ended.complaint) == (130, "sdrt: interrupted")


def test_a_reader_that_goes_away_is_said_in_one_line() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-W", "error", "-m", "sdrt", "--help"]
    ended = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 6
    assert ended.stderr == f"sdrt: cannot write to stdout: the program that read it has ended ({STDOUT_HINT})\n"


def test_info_refuses_what_is_no_picture_of_ours(sdrt: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert sdrt("info", tmp_path / "text.png").code == 3
    assert sdrt("info", tmp_path / "absent.png").code == 2
    assert info.command.name == "info"
