"""The command line's streams: a failed write to stdout is an error, one to stderr is ignored."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from sdrt.errors import ResourceError
from sdrt.files import REFUSALS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = 0, 1, 2
READERS_GONE = {errno.EPIPE: "the program that read it has ended"}
STDOUT_HINT = "redirect it to a file, a program or /dev/null"


class _Raw(io.RawIOBase):
    """A file descriptor that stays open and that drops everything after a failed write."""

    def __init__(self, descriptor: int, *, must_arrive: bool) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._must_arrive = must_arrive
        self._lost = False

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; raise ResourceError for the first failure if the data must arrive."""
        while not self._lost:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # The program at the other end made the pipe non-blocking.
                select.select([], [self._descriptor], [])
            except OSError as error:
                # Buffered data is written again when the process ends, and would fail again.
                self._lost = True
                if self._must_arrive:
                    reason = REFUSALS.get(error.errno or 0) or READERS_GONE.get(error.errno or 0) or str(error)
                    raise ResourceError(f"cannot write to stdout: {reason}", hint=STDOUT_HINT) from error
        return memoryview(data).nbytes


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard the process's own stdout and stderr for the block; streams that a program put in their place stay.

    A stream that was closed before the process started is opened to /dev/null: otherwise the next file that is opened
    would get its descriptor, and libraries would print into it. `check_stdout` raises if stdout was closed.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    for descriptor, mode in ((STDIN, os.O_RDONLY), (STDOUT, os.O_WRONLY), (STDERR, os.O_WRONLY)):
        _open_to_nothing(descriptor, mode)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(STDERR, sys.stderr, "backslashreplace", must_arrive=False)
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        # Bytes of a path that are not UTF-8 are printed unchanged.
        sys.stdout = _guarded(STDOUT, sys.stdout, "surrogateescape", must_arrive=True)
    try:
        yield
    finally:
        with contextlib.suppress(ResourceError, ValueError):
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def check_stdout() -> None:
    """Raise ResourceError if stdout was closed before the process started."""
    if sys.stdout is None:
        raise ResourceError("stdout is closed", hint=STDOUT_HINT)


def _open_to_nothing(descriptor: int, mode: int) -> None:
    """Open /dev/null under a standard stream's descriptor if that is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, mode)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _guarded(descriptor: int, stream: TextIO | None, errors: str, *, must_arrive: bool) -> TextIO:
    raw = _Raw(descriptor, must_arrive=must_arrive)
    encoding = "utf-8" if stream is None else stream.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=raw.isatty(), write_through=True)
