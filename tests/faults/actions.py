"""Calls that tests run in forks: each of sdrt's ways to write to disk, and commands under adverse conditions."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from sdrt.artefacts.manifest import MANIFEST
from sdrt.artefacts.sealed import SealedFile
from sdrt.artefacts.store import Store
from sdrt.cli import main
from sdrt.errors import EngineError, TrustError
from sdrt.files import folder_published_as, write_atomically
from sdrt.progress import silent
from tests.doubles.engine_sets import KEY, make_set

BACKEND = "openvino"
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2


def write(path: str) -> None:
    write_atomically(Path(path), b"new" * 100)


def publish(path: str) -> None:
    with folder_published_as(Path(path)) as part:
        (part / "below").mkdir()
        (part / "below" / "file").write_text("new")
        (part / "file").write_text("new")


def publish_without_exchange(path: str) -> None:
    """Replace a folder on a file system that cannot exchange two names."""
    from sdrt import files

    files._exchange = lambda *_: False
    publish(path)


def seal(path: str) -> None:
    """Replace a sealed cache, under its lock."""
    file = SealedFile(Path(path), silent.note)
    with file.locked():
        file.write(file.read() + b"new")


def build(root: str) -> None:
    """Put a set into a store as a build does: sound ones stay, broken ones go to quarantine."""
    store = Store(Path(root))
    target = store.engines_path(BACKEND, KEY)
    try:
        store.open_engines(target)
    except (EngineError, TrustError):
        with store.locked(target):
            if target.exists():
                store.quarantine(target, EngineError("broken", hint=""), silent)
            with store.staged(target) as part:
                make_set(part)
    store.sweep()


def carry(root: str, folder: str, digest: str) -> None:
    """Import a set from elsewhere."""
    store = Store(Path(root))
    store.import_engines(Path(folder), trust=digest)
    store.sweep()


def collect(root: str) -> None:
    """Remove everything that is not in use."""
    Store(Path(root)).gc(unused_for_s=-1e9)


def spoil(root: Path) -> None:
    """Damage a store's set detectably."""
    (Store(root).engines_path(BACKEND, KEY) / MANIFEST).write_text("{}")


def at_once(count: int, words: list[str], *, locks: bool = True) -> None:
    """Run the command line in ``count`` simultaneous processes, with their output in one file; fail if one does.

    Args:
        count: Number of processes.
        words: Arguments of each.
        locks: Whether locks lock; otherwise they always succeed, as on some network file systems.
    """
    if not locks:
        fcntl.flock = lambda *_: None
    waiting, starting = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.close(starting)
            os.read(waiting, 1)
            _one_of_many(words, f"said-{number}")
        children.append(child)
    os.close(starting)
    raise SystemExit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def _one_of_many(words: list[str], log: str) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(said, stream)
    code: object = 1
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def limited(size_bytes: int, words: list[str]) -> None:
    """Run the command line with a limit on file sizes: the system answers almost as for a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
    main(words)


def unprivileged(words: list[str]) -> None:
    """Run the command line without root's right to write everywhere."""
    drop_privileges()
    main(words)


def drop_privileges() -> None:
    """Give up this process's capabilities (capset(2)), so that permissions apply to root too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextlib.contextmanager
def rights_dropped() -> Iterator[None]:
    """Drop root's right to read and write everywhere for the block (capget(2), capset(2)).

    The process may take it back, so access(2) still counts it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, twice 32 bits.
    held = (ctypes.c_uint32 * 6)()
    if libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    dropped = (ctypes.c_uint32 * 6)(held[0] & ~(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH), *held[1:])
    try:
        if libc.capset(header, dropped) != 0:
            raise OSError(ctypes.get_errno(), "capset")
        yield
    finally:
        libc.capset(header, held)


def at_once_without_locks(count: int, words: list[str]) -> None:
    """Run `at_once` on a file system whose locks always succeed."""
    at_once(count, words, locks=False)


def starved(spare_bytes: int, words: list[str]) -> None:
    """Run the command line with a limit on further address space (RLIMIT_AS)."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes, resource.RLIM_INFINITY))
    main(words)


def hung(words: list[str]) -> None:
    """Run the command line with compilers that hang: their import never returns."""
    shadow = Path("shadow")
    shadow.mkdir()
    (shadow / "onnxruntime.py").write_text("import time\nprint('hangs', flush=True)\ntime.sleep(3600)\n")
    sys.path.insert(0, str(shadow.absolute()))
    main(words)


def each_unprivileged(commands: list[tuple[str, list[str]]]) -> None:
    """Run command lines one after the other without root's right to read and write everywhere.

    Writes the exit code and stderr of each to answers.json in the current folder.

    Args:
        commands: Each with the path of a file or folder without permissions for its run.
    """
    drop_privileges()
    answers = []
    for closed, words in commands:
        path = Path(closed)
        mode = path.stat().st_mode
        path.chmod(0)
        answers.append(_ended(words))
        path.chmod(mode)
    Path("answers.json").write_text(json.dumps(answers))


def each_in_a_folder_that_is_gone(commands: list[list[str]]) -> None:
    """Run command lines one after the other in a removed current folder; answers as in `each_unprivileged`."""
    answers = Path("answers.json").absolute()
    Path("gone").mkdir()
    os.chdir("gone")
    answers.with_name("gone").rmdir()
    answers.write_text(json.dumps([_ended(words) for words in commands]))


def _ended(words: list[str]) -> tuple[object, str]:
    """Run a command line; return its exit code and stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            main(words)
        except SystemExit as ended:
            return ended.code, said.getvalue()
        except Exception:
            return 1, traceback.format_exc()
