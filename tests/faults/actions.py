"""What is killed half-way: each of the ways in which sdrt puts something on the disk, by itself."""

from __future__ import annotations

from pathlib import Path

from sdrt.bundle import MANIFEST
from sdrt.engines.sealed import SealedFile
from sdrt.engines.store import Store
from sdrt.errors import EngineError, TrustError
from sdrt.files import folder_published_as, write_atomically
from sdrt.progress import silent
from tests.engines.sets import KEY, make_set

BACKEND = "openvino"


def write(path: str) -> None:
    """Replace a file."""
    write_atomically(Path(path), b"new" * 100)


def publish(path: str) -> None:
    """Replace a folder."""
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
    """Put a set into a store, as a build does: what is there and sound stays, what is broken goes to quarantine."""
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
    """Break the set of a store, so that it is found out."""
    (Store(root).engines_path(BACKEND, KEY) / MANIFEST).write_text("{}")
