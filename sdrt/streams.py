"""The command line's streams: stdout that cannot be written is an error, stderr that cannot be stops nothing."""

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
READERS_GONE = {errno.EPIPE: "what read it has ended"}
STDOUT_HINT = "send it to a file or program that takes it, or to /dev/null"


class _Raw(io.RawIOBase):
    """A file descriptor that stays open, and that takes and drops everything once a write to it has failed."""

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
        """Write; raise ResourceError for the first failure where the data must arrive."""
        while not self._lost:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # The program at the other end made the pipe one that does not wait.
                select.select([], [self._descriptor], [])
            except OSError as error:
                # What is buffered is written again as the process ends, and would fail again.
                self._lost = True
                if self._must_arrive:
                    reason = REFUSALS.get(error.errno or 0) or READERS_GONE.get(error.errno or 0) or str(error)
                    raise ResourceError(f"cannot write to stdout: {reason}", hint=STDOUT_HINT) from error
        return memoryview(data).nbytes


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block, guard the process's own stdout and stderr; streams that a program put in their place stay.

    A stream that was closed before the process started is opened to nothing: else the next file that is opened takes
    its number, and libraries print into it. `check_stdout` says whether stdout was.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    for descriptor, mode in ((STDIN, os.O_RDONLY), (STDOUT, os.O_WRONLY), (STDERR, os.O_WRONLY)):
        _open_to_nothing(descriptor, mode)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(STDERR, sys.stderr, "backslashreplace", must_arrive=False)
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        # A path's bytes that are not UTF-8 are printed as they are.
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
    """Raise ResourceError unless there is a stdout.

    Raises:
        ResourceError: It was closed before the process started.
    """
    if sys.stdout is None:
        raise ResourceError("stdout is closed", hint=STDOUT_HINT)


def _open_to_nothing(descriptor: int, mode: int) -> None:
    """Open a standard stream's number to /dev/null where it is closed."""
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
