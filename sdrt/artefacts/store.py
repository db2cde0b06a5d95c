"""The store: a private folder of bundles and engine sets, locked while it is written and published atomically."""

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
    """A bundle or engine set. ``last_used_s`` is seconds since the epoch; unknown fields of a broken one are None."""

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
    """A store in ``root``, which is created when something is first written.

    Attributes:
        root: The folder.
        lock_timeout_s: Seconds to wait for another process that builds the same bundle or engine set.
    """

    root: Path
    lock_timeout_s: float = LOCK_TIMEOUT_S

    @classmethod
    def at(cls, root: Path | None) -> Store:
        """Return the store in a folder; None for the user's own store."""
        return cls.default() if root is None else cls(root)

    @classmethod
    def default(cls) -> Store:
        """Return the user's own store, in the cache folder of the system."""
        return cls(platformdirs.user_cache_path("sdrt"))

    def bundle_path(self, key: str) -> Path:
        """Return the path of the bundle of a key."""
        return self.root / "bundles" / key

    def engines_path(self, backend: str, key: str) -> Path:
        """Return the path of the engine set of a key."""
        return self.root / "engines" / backend / key

    @property
    def timing_caches(self) -> Path:
        """The folder of TensorRT's timing caches."""
        return self.root / "timing"

    def check(self) -> None:
        """Raise unless only this user can write to the store's existing folders.

        Raises:
            ResourceError: A folder belongs to another user.
            TrustError: Others can write to a folder.
        """
        check_private(folder for folder in (self.root, *(self.root / part for part in PARTS)) if is_there(folder))

    def prepare(self) -> None:
        """Create the store's folders, check who can write to them, and remove what killed processes left.

        Raises:
            ResourceError: The root cannot be created, or belongs to another user.
            TrustError: Others can write to the store.
        """
        with disk_errors(self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *(self.root / part for part in PARTS)):
                folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
        self.check()
        self.sweep()

    def sweep(self) -> None:
        """Remove unfinished folders and holder files of killed processes, except those that cannot be removed."""
        sweep(self.root / "staging")
        sweep(self.timing_caches)
        for folder in (self.root / "locks", self.timing_caches):
            drop_dead_holders(folder)
        for folder in (self.root / "quarantine").glob("*"):
            if is_abandoned(folder.name.partition("-")[2]):
                # rmdir removes only empty folders; quarantined artefacts stay.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    @contextlib.contextmanager
    def locked(self, path: Path, progress: Progress = silent) -> Iterator[None]:
        """Lock a path of the store, which need not exist, against other processes for the block.

        Raises:
            TimeLimitError: Another process held the lock for too long.
            ResourceError: The store cannot be written.
            TrustError: Others can write to it.
        """
        self.prepare()
        name = "-".join(path.relative_to(self.root).parts)
        with exclusive(self.root / "locks" / f"{name}.lock", str(path), self.lock_timeout_s, progress):
            yield

    @contextlib.contextmanager
    def staged(self, target: Path) -> Iterator[Path]:
        """Yield a path for a new folder, which is renamed to ``target`` when the block succeeds.

        If ``target`` exists by then, it stays and the new folder is discarded, since equal keys mean equal contents.
        The rename is atomic: safe even on file systems without locks.

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
        """Yield an empty folder on the store's file system; it is removed when the block ends."""
        with disk_errors(self.root / "staging"):
            folder = Path(tempfile.mkdtemp(prefix=PART_PREFIX + owner_name(), dir=self.root / "staging"))
        try:
            with try_exclusive(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def open_engines(self, path: Path, *, trust: str | None = None, verify: bool = True) -> EngineSet:
        """Open an engine set that is in this store or trusted by its digest, and update its time of last use.

        Args:
            path: The set.
            trust: SHA-256 of its manifest.json, for a set outside the store.
            verify: Hash the engines now, instead of each before its first use. If a later check fails, the set is moved
                to quarantine and the next run builds it again.

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
        """Move a set with a changed engine to quarantine; return the error that says so."""
        hint = "build them again: by sdrt build, or by the same command without --engines"
        aside = None
        # An error of the store must not replace this one.
        with contextlib.suppress(ResourceError, TimeLimitError):
            try:
                # Another process may have moved the set and built it again meanwhile.
                EngineSet.open(path, private_root=self.root).lease.release()
            except (EngineError, TrustError):
                aside = self.quarantine(path, error, silent)
        return TrustError(error.message + (f"; its engines are now in {aside}" if aside else ""), hint=hint)

    def open_bundle(self, path: Path) -> Bundle:
        """Open a bundle and update its time of last use.

        Raises:
            BundleError, TrustError: As `Bundle.open`.
        """
        opened = Bundle.open(path)
        with contextlib.suppress(OSError):
            os.utime(path / MANIFEST)
        return opened

    def quarantine(self, path: Path, reason: SdrtError, progress: Progress) -> Path | None:
        """Move a broken artefact to quarantine, where it can be inspected and is never opened.

        Returns:
            Its new path; None if another process has moved it already.

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
        """Return all entries of the store, sorted by path, without hashing them.

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
        """Hash every bundle and engine set; return its error, or None, by path."""
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
                # An entry that gc removed meanwhile is not broken.
                if entry.path.exists():
                    problems[entry.path] = error
            else:
                problems[entry.path] = None
        return problems

    def import_engines(self, folder: Path, *, trust: str) -> EngineSet:
        """Copy an engine set from elsewhere into the store.

        Args:
            folder: The set.
            trust: SHA-256 of its manifest.json, which the user trusts.

        Raises:
            EngineError: It is malformed.
            TrustError: Its digest differs, or that of one of its files.
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
                # The source was checked; the copy is what will be opened.
                EngineSet.open(copy, trust=trust).lease.release()
        source.lease.release()
        return self.open_engines(target)

    def gc(self, *, unused_for_s: float, progress: Progress = silent) -> tuple[StoreEntry, ...]:
        """Remove bundles and engine sets that were not used for ``unused_for_s`` seconds.

        Entries in use, and the quarantine, stay.

        Returns:
            The removed entries.

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
                    # Renamed first, so that no process opens a half-removed folder.
                    entry.path.rename(folder / entry.path.name)
                    removed.append(entry)
                else:
                    progress.note(f"{entry.path} is in use and stays")
        return tuple(removed)


def _publish(made: Path, target: Path) -> None:
    """Sync a folder to disk and rename it to ``target``, unless that exists."""
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
    """Return the paths ``depth`` levels below a folder, sorted; Path.glob would skip unreadable folders silently."""
    if depth == 0:
        return [folder]
    if not folder.is_dir():
        return []
    return [found for inner in sorted(folder.iterdir()) for found in _below(inner, depth - 1)]


def _entry(path: Path, kind: Kind) -> StoreEntry | None:
    """Return the entry of a path; None if it is no folder or was removed since it was listed."""
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
