"""Streams that are closed, broken or full: one line and exit code 6 for stdout; for stderr only its text is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrt.errors import ResourceError
from sdrt.streams import STDOUT_HINT, _guarded

#: Help, data and a listing.
WORDS = ["--help", "--version", "store list --json --store .", "store gc --help"]
CLOSED, FULL = "closed", "/dev/full"


def run(words: str, folder: Path, *, stdout: str = os.devnull, stderr: str = "said", stdin: str = os.devnull) -> int:
    """Run the command line with its streams redirected or closed; return its exit code."""
    streams = {0: stdin, 1: stdout, 2: stderr}
    shell = [
        f"{number}{'<' if number == 0 else '>'}{'&-' if place == CLOSED else place}"
        for number, place in streams.items()
    ]
    command = f'exec "{sys.executable}" -W error -m sdrt {words} {" ".join(shell)}'
    return subprocess.run(["sh", "-c", command], cwd=folder, env=os.environ, check=False).returncode


@pytest.mark.parametrize("words", WORDS)
def test_a_full_disk_while_printing(words: str, tmp_path: Path) -> None:
    assert run(words, tmp_path, stdout=FULL) == 6
    assert (tmp_path / "said").read_text() == f"sdrt: cannot write to stdout: the disk is full ({STDOUT_HINT})\n"


def test_stdout_that_was_closed_is_said_before_work_starts(tmp_path: Path) -> None:
    assert run("export --out bundle", tmp_path, stdout=CLOSED) == 6
    assert (tmp_path / "said").read_text() == f"sdrt: stdout is closed ({STDOUT_HINT})\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said"]


@pytest.mark.parametrize("stderr", [CLOSED, FULL])
def test_stderr_that_takes_nothing_changes_no_exit_code(stderr: str, tmp_path: Path) -> None:
    assert run("paint", tmp_path, stdout="out", stderr=stderr) == 2
    assert run("store gc --store .", tmp_path, stdout="out", stderr=stderr) == 0
    assert (tmp_path / "out").read_text() == ""


def test_no_stream_at_all(tmp_path: Path) -> None:
    assert run("--help", tmp_path, stdout=CLOSED, stderr=CLOSED, stdin=CLOSED) == 6


def test_stdin_that_was_closed_is_not_missed(tmp_path: Path) -> None:
    assert run("store list --store .", tmp_path, stdin=CLOSED) == 0
    assert (tmp_path / "said").read_text() == ""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return the two ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_a_reader_that_ends_in_the_middle_is_an_error_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stream = _guarded(writing, None, "strict", must_arrive=True)
    stream.write("one")
    stream.flush()
    assert os.read(reading, 10) == b"one"
    os.close(reading)
    stream.write("two")
    with pytest.raises(ResourceError, match="cannot write to stdout: the program that read it has ended"):
        stream.flush()
    # The buffer is flushed again when the process ends.
    stream.write("three")
    stream.flush()


def test_words_that_need_not_arrive_are_dropped(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    stream = _guarded(writing, None, "strict", must_arrive=False)
    stream.write("one")
    stream.flush()


def test_a_pipe_that_does_not_wait_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    stream = _guarded(writing, None, "strict", must_arrive=True)
    text, found = "a" * 200_000, bytearray()

    def read() -> None:
        while len(found) < len(text):
            found.extend(os.read(reading, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    stream.write(text)
    stream.flush()
    reader.join()
    assert found == text.encode()


def test_names_that_are_not_utf_8_are_printed_as_they_are(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stream = _guarded(writing, None, "surrogateescape", must_arrive=True)
    stream.write(os.fsdecode(b"mod\xe8le"))
    stream.flush()
    assert os.read(reading, 10) == b"mod\xe8le"
