"""Runs calls in forked processes and kills them at a set point: a file operation, a stage, or a time.

A server process does the slow imports once; each call is a fork of it, so that fifty kills cost fifty calls.
The kill is SIGKILL: nothing of the process runs afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

ROOT = Path(__file__).parents[2]
#: Audit events (PEP 578) that change files, take locks or start processes; each is raised just before it happens.
#: "open" counts if it opens for writing.
OPERATIONS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.utime", "os.truncate")
OTHERS = ("fcntl.flock", "subprocess.Popen")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """The end of a call: ``code`` is negative if it was killed.

    ``operations`` and ``notes`` list its file operations and progress notes if it was not killed.
    """

    code: int
    operations: list[str]
    notes: list[str]
    seconds: float
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Killer:
    """A server of forks. Leaving its block ends it.

    Args:
        modules: Modules that the server imports first.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.faults.killer", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        )
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)
        assert self._answers.readline() == "ready\n", "the server did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(
        self,
        call: str,
        *arguments: Any,
        folder: Path,
        operation: int | None = None,
        note: int | str | None = None,
        seconds: float | None = None,
        number: int = signal.SIGKILL,
    ) -> Ended:
        """Call "module:function" in a fork, in a folder that is its current and, below "tmp", its temporary one.

        Args:
            call: The function.
            arguments: Its arguments, as JSON.
            folder: The folder.
            operation: Kill it before this file operation, counted from 0.
            note: Kill it at this progress note, counted from 0, or at a note with this beginning.
            seconds: Kill it after this time.
            number: The signal to send at an operation or a note instead of SIGKILL.
        """
        (folder / "tmp").mkdir(exist_ok=True)
        limits = {"operation": operation, "note": note, "seconds": seconds, "number": number}
        request = {"call": call, "arguments": arguments, "folder": str(folder), **limits}
        self._requests.write(json.dumps(request, default=str) + "\n")
        self._requests.flush()
        return Ended(**json.loads(self._answers.readline()))

    def sdrt(self, *words: str | Path | int, folder: Path, **kill: Any) -> Ended:
        """Run the command line in a fork."""
        return self("sdrt.cli:main", [str(word) for word in words], folder=folder, **kill)


def tree(folder: Path) -> list[str]:
    """List everything below a folder, by relative path."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def no_children(folder: Path) -> bool:
    """Return whether no process works below the folder; the system takes a moment to end a killed one's children."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(str(folder) in _files_of(process) for process in Path("/proc").glob("[0-9]*")):
            return True
    return False


def _files_of(process: Path) -> str:
    """Return a process's current folder and open files; nothing for one that has ended."""
    try:
        return "\n".join(str(link.readlink()) for link in (process / "cwd", *(process / "fd").iterdir()))
    except OSError:
        return ""


def serve(modules: Sequence[str]) -> None:
    """Answer requests until stdin ends."""
    for module in modules:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        with _pipe() as report, _pipe() as log:
            child = os.fork()
            if child == 0:
                _call(request, report.writing, log.writing)
            code = _reap(child, request["seconds"])
            answer = {"operations": [], "notes": [], **json.loads(report.read() or "{}")}
            answer |= {"code": code, "seconds": time.monotonic() - start, "err": log.read()}
        print(json.dumps(answer), flush=True)


@dataclass(frozen=True)
class _Pipe:
    """A pipe for a call's output: no limit on files and no full disk applies to it."""

    reading: int
    writing: int

    def read(self) -> str:
        """Return the pipe's content, some of it perhaps from children of a killed call."""
        os.set_blocking(self.reading, False)
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.reading, 1 << 16):
                data += more
        return data.decode(errors="replace")


@contextlib.contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe(*os.pipe())
    fcntl.fcntl(pipe.reading, fcntl.F_SETPIPE_SZ, 1 << 20)
    yield pipe
    os.close(pipe.reading)
    os.close(pipe.writing)


def _reap(child: int, seconds: float | None) -> int:
    """Wait for the child's end, killing it after ``seconds``; return its exit code."""
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _call(request: dict[str, Any], writing: int, log: int) -> None:
    """Execute the request in the child, report it, and exit."""
    os.chdir(request["folder"])
    # Python probes a temporary folder with a file of four bytes, which a kill may leave; so it is set directly.
    tempfile.tempdir = os.environ["TMPDIR"] = f"{request['folder']}/tmp"
    for stream in (1, 2):
        os.dup2(log, stream)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    module, _, name = request["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    # Background jobs of a shell without job control ignore it, and so would the call.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    operations = _killed_at_operation(request["operation"], request["number"])
    notes = _killed_at_note(request["note"], request["number"])
    code = 0
    try:
        function(*request["arguments"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    done = list(operations)
    os.write(writing, json.dumps({"operations": done, "notes": notes}).encode())
    os._exit(code)


def _killed_at_operation(place: int | None, number: int) -> list[str]:
    """Watch file operations; return the list that records them."""
    seen: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not int(arguments[2]) & WRITING:
            return
        if event == "open" or event in OPERATIONS or event in OTHERS:
            seen.append(f"{event} {arguments[0] if arguments else ''}")
            if len(seen) - 1 == place:
                os.kill(os.getpid(), number)

    sys.addaudithook(watch)
    return seen


def _killed_at_note(place: int | str | None, number: int) -> list[str]:
    """Watch progress notes; return the list that records them."""
    from sdrt.progress import Lines

    said: list[str] = []
    say = Lines.note

    def watch(lines: Lines, text: str) -> None:
        say(lines, text)
        said.append(text)
        if len(said) - 1 == place or (isinstance(place, str) and text.startswith(place)):
            os.kill(os.getpid(), number)

    setattr(Lines, say.__name__, watch)
    return said


if __name__ == "__main__":
    serve(sys.argv[1:])
