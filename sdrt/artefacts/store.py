"""The store: the folder where bundles and engine sets are kept, private, locked and published whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import platformdirs

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineManifest, EngineSet, check_private
from sdrt.artefacts.locks import drop_dead_holders, exclusive, try_exclusive
from sdrt.artefacts.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from sdrt.errors import ArtefactError, EngineError, ResourceError, SdrtError, TimeLimitError, TrustError
from sdrt.files import disk_errors, fsync_path, is_there, sha256_bytes, system_errors
from sdrt.progress import Progress, silent
from sdrt.unfinished import PART_PREFIX, is_abandoned, owner_name, sweep

PRIVATE_MODE = 0o700
PARTS = ("bundles", "engines", "quarantine", "locks", "staging", "timing")
LOCK_TIMEOUT_S = 1800.0
Kind = Literal["bundle", "engines", "quarantine"]


@dataclass(frozen=True)
class StoreEntry:
    """One thing in the store. ``last_used_s`` is seconds since the epoch; what a broken entry cannot tell is None."""

    path: Path
    kind: Kind
    key: str
    digest: str | None
    size_bytes: int
    backend: str | None
    precision: str | None
    checkpoint: str | None
    last_used_s: float


@dataclass(frozen=True)
class Store:
    """A store in ``root``. Nothing is made there before something is put in.

    Attributes:
        root: The folder.
        lock_timeout_s: How long to wait for another process that builds the same thing.
    """

    root: Path
    lock_timeout_s: float = LOCK_TIMEOUT_S

    @classmethod
    def at(cls, root: Path | None) -> Store:
        """Return the store in a folder; the user's own for None."""
        return cls.default() if root is None else cls(root)

    @classmethod
    def default(cls) -> Store:
        """The user's own, in the system's cache folder."""
        return cls(platformdirs.user_cache_path("sdrt"))

    def bundle_path(self, key: str) -> Path:
        """Where a bundle of this key lies."""
        return self.root / "bundles" / key

    def engines_path(self, backend: str, key: str) -> Path:
        """Where an engine set of this key lies."""
        return self.root / "engines" / backend / key

    @property
    def timing_caches(self) -> Path:
        """Where TensorRT's measurements lie."""
        return self.root / "timing"

    def check(self) -> None:
        """Hold that what is there of the store is this user's alone.

        Raises:
            ResourceError: It belongs to somebody else.
            TrustError: Others can write to it.
        """
        check_private(folder for folder in (self.root, *(self.root / part for part in PARTS)) if is_there(folder))

    def prepare(self) -> None:
        """Make the store's folders, or hold that those that are there are ours alone; sweep what dead processes left.

        Raises:
            ResourceError: The root cannot be made, or belongs to somebody else.
            TrustError: Others can write to it.
        """
        with disk_errors(self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *(self.root / part for part in PARTS)):
                folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
        self.check()
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed processes left: unfinished folders, names of holders. What cannot be removed stays."""
        sweep(self.root / "staging")
        sweep(self.timing_caches)
        for folder in (self.root / "locks", self.timing_caches):
            drop_dead_holders(folder)
        for folder in (self.root / "quarantine").glob("*"):
            if is_abandoned(folder.name.partition("-")[2]):
                # Only an empty one goes: what is in quarantine stays.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    @contextlib.contextmanager
    def locked(self, path: Path, progress: Progress = silent) -> Iterator[None]:
        """Keep other processes from making what lies, or will lie, at a path of the store.

        Raises:
            TimeLimitError: Another process had it for too long.
            ResourceError: The store cannot be written.
            TrustError: Others can write to it.
        """
        self.prepare()
        name = "-".join(path.relative_to(self.root).parts)
        with exclusive(self.root / "locks" / f"{name}.lock", str(path), self.lock_timeout_s, progress):
            yield

    @contextlib.contextmanager
    def staged(self, target: Path) -> Iterator[Path]:
        """Give a path for a new folder; what the block made there becomes ``target`` by one rename when it ends well.

        If ``target`` exists by then, it stays and ours is dropped: equal keys stand for equal contents. So even where
        locks do not lock, nobody sees a part or loses what he reads.

        Raises:
            ResourceError: The store cannot be written.
        """
        self.prepare()
        with self._scratch() as folder:
            yield folder / target.name
            with disk_errors(target):
                for parent in reversed(target.relative_to(self.root).parents):
                    (self.root / parent).mkdir(mode=PRIVATE_MODE, exist_ok=True)
                _publish(folder / target.name, target)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder of this process's on the store's own file system, removed at the end."""
        with disk_errors(self.root / "staging"):
            folder = Path(tempfile.mkdtemp(prefix=PART_PREFIX + owner_name(), dir=self.root / "staging"))
        try:
            with try_exclusive(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def open_engines(self, path: Path, *, trust: str | None = None, verify: bool = True) -> EngineSet:
        """Open an engine set, by right of lying in this store or by its digest, and note that it was used.

        Args:
            path: The set.
            trust: SHA-256 of its manifest.json, where it lies elsewhere.
            verify: Whether engines are hashed at once, rather than each when it is opened. One that is found changed
                then goes to quarantine with its set, which the next run builds again.

        Raises:
            EngineError, TrustError, ResourceError: As `EngineSet.open`.
        """
        opened = EngineSet.open(path, trust=trust, private_root=self.root, verify=verify)
        if opened.in_private_store:
            opened = replace(opened, refuse=partial(self._refuse, path))
        with contextlib.suppress(OSError):
            os.utime(path / MANIFEST)
        return opened

    def _refuse(self, path: Path, error: TrustError) -> TrustError:
        """Move a set aside of which an engine is not what was sealed; the error says so."""
        hint = "build them again: by sdrt build, or by the same command without --engines"
        aside = None
        # An error of the store's must not hide this one.
        with contextlib.suppress(ResourceError, TimeLimitError):
            try:
                # Another process may have moved it meanwhile, and built it again.
                EngineSet.open(path, private_root=self.root).lease.release()
            except (EngineError, TrustError):
                aside = self.quarantine(path, error, silent)
        return TrustError(error.message + (f"; its engines are now in {aside}" if aside else ""), hint=hint)

    def open_bundle(self, path: Path) -> Bundle:
        """Open a bundle and note that it was used.

        Raises:
            BundleError, TrustError: As `Bundle.open`.
        """
        opened = Bundle.open(path)
        with contextlib.suppress(OSError):
            os.utime(path / MANIFEST)
        return opened

    def quarantine(self, path: Path, reason: SdrtError, progress: Progress) -> Path | None:
        """Move something broken aside, where it can be looked at and is never opened.

        Returns:
            Where it lies now; None where another process has moved it already.

        Raises:
            ResourceError: The store cannot be written.
        """
        self.prepare()
        with disk_errors(path):
            prefix = f"{path.name[:16]}-{owner_name()}"
            aside = Path(tempfile.mkdtemp(prefix=prefix, dir=self.root / "quarantine")) / path.name
            try:
                path.rename(aside)
            except FileNotFoundError:
                aside.parent.rmdir()
                return None
        progress.note(f"{reason.message}; moved to {aside}")
        return aside

    def entries(self) -> tuple[StoreEntry, ...]:
        """Return everything in the store, in the order of its paths; hashes nothing.

        Raises:
            ResourceError: The store cannot be read.
        """
        places: tuple[tuple[Kind, str, int], ...] = (
            ("bundle", "bundles", 1),
            ("engines", "engines", 2),
            ("quarantine", "quarantine", 2),
        )
        with system_errors():
            found = [_entry(path, kind) for kind, part, depth in places for path in _below(self.root / part, depth)]
        return tuple(entry for entry in found if entry is not None)

    def verify(self) -> dict[Path, SdrtError | None]:
        """Hash every bundle and engine set; for each path what is wrong with it, or None."""
        problems: dict[Path, SdrtError | None] = {}
        for entry in self.entries():
            if entry.kind == "quarantine":
                continue
            try:
                if entry.kind == "bundle":
                    Bundle.open(entry.path, verify=True)
                else:
                    EngineSet.open(entry.path, private_root=self.root)
            except SdrtError as error:
                # What a gc removed meanwhile is no problem.
                if entry.path.exists():
                    problems[entry.path] = error
            else:
                problems[entry.path] = None
        return problems

    def import_engines(self, folder: Path, *, trust: str) -> EngineSet:
        """Copy an engine set from elsewhere into the store.

        Args:
            folder: The set.
            trust: SHA-256 of its manifest.json, by which the user vouches for it.

        Raises:
            EngineError: It is malformed.
            TrustError: It does not have this digest, or one of its files not the digest in its manifest.
        """
        source = EngineSet.open(folder, trust=trust)
        target = self.engines_path(source.manifest.backend, source.manifest.key)
        with self.locked(target):
            if target.exists():
                return self.open_engines(target)
            with self.staged(target) as copy, disk_errors(target):
                copy.mkdir(mode=PRIVATE_MODE)
                for name in (*source.manifest.files, MANIFEST):
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, copy / name, follow_symlinks=False)
                # What was checked is the source; what will be opened is the copy.
                EngineSet.open(copy, trust=trust).lease.release()
        source.lease.release()
        return self.open_engines(target)

    def gc(self, *, unused_for_s: float, progress: Progress = silent) -> tuple[StoreEntry, ...]:
        """Remove bundles and engine sets that were not used for a while. What is in use stays, and quarantine too.

        Returns:
            What was removed.

        Raises:
            ResourceError: The store cannot be written.
        """
        if not self.root.exists():
            return ()
        self.prepare()
        removed = []
        for entry in self.entries():
            if entry.kind == "quarantine" or time.time() - entry.last_used_s < unused_for_s:
                continue
            with try_exclusive(entry.path) as unused, self._scratch() as folder, disk_errors(entry.path):
                if unused:
                    # By one rename, so that nobody opens what is half removed.
                    entry.path.rename(folder / entry.path.name)
                    removed.append(entry)
                else:
                    progress.note(f"{entry.path} is in use and stays")
        return tuple(removed)


def _publish(made: Path, target: Path) -> None:
    """Rename a folder into place, once its bytes are durable, unless something is there."""
    for folder, _, names in os.walk(made):
        for name in names:
            fsync_path(Path(folder, name))
        fsync_path(Path(folder))
    made.chmod(PRIVATE_MODE)
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    fsync_path(target.parent)


def _below(folder: Path, depth: int) -> list[Path]:
    """Return what lies so many levels below a folder, sorted; Path.glob would pass over what it may not read."""
    if depth == 0:
        return [folder]
    if not folder.is_dir():
        return []
    return [found for inner in sorted(folder.iterdir()) for found in _below(inner, depth - 1)]


def _entry(path: Path, kind: Kind) -> StoreEntry | None:
    """One folder of the store; None where it is none, or has gone since it was listed."""
    manifest: Manifest | EngineManifest | None = None
    data = b""
    with contextlib.suppress(ArtefactError, TrustError):
        data = read_manifest(path, ArtefactError)
        if kind == "bundle":
            manifest = parse_manifest(path, data, Manifest, ArtefactError)
        else:
            manifest = parse_manifest(path, data, EngineManifest, ArtefactError)
    try:
        if not path.is_dir():
            return None
        used = path / MANIFEST if (path / MANIFEST).exists() else path
        last_used_s = used.stat().st_mtime
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    except FileNotFoundError:
        return None
    return StoreEntry(
        path=path,
        kind=kind,
        key=path.name,
        digest=sha256_bytes(data) if manifest else None,
        size_bytes=size_bytes,
        backend=manifest.backend if isinstance(manifest, EngineManifest) else None,
        precision=manifest.precision if manifest else None,
        checkpoint=manifest.checkpoint.name if manifest else None,
        last_used_s=last_used_s,
    )
