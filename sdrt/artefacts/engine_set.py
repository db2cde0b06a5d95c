"""Engine sets: engines that one backend compiled from one bundle, sealed by ``manifest.json``."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sdrt.artefacts.locks import Lease
from sdrt.artefacts.manifest import (
    DEEPCACHE,
    MANIFEST,
    CheckpointRecord,
    ComponentName,
    Digest,
    Precision,
    Record,
    SealedManifest,
    TensorSpec,
    check_files,
    parse_manifest,
    read_manifest,
)
from sdrt.errors import EngineError, ResourceError, TrustError
from sdrt.files import read_with_sha256, sha256_bytes, sha256_file, system_errors

Provider = Literal["cpu", "cuda", "tensorrt"]

BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
TOKENIZER = "tokenizer/tokenizer.json"
SCHEDULER = "scheduler/scheduler_config.json"


class BatchRange(Record):
    """Batch sizes that an engine accepts: ``min`` to ``max``, fastest at ``opt``."""

    min: int = Field(ge=1)
    opt: int
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self.min}, {self.opt}, {self.max} are not in ascending order")
        return self


class AttentionLayer(Record):
    """One attention: ``heads`` of ``head_size``, ``queries`` tokens to ``keys``; ``fused`` if in one kernel."""

    name: str
    heads: int
    queries: int
    keys: int
    head_size: int
    precision: str
    fused: bool


class LayerList(Record):
    """The layers of a compiled plan, recorded because a plan cannot be read without a GPU.

    ``kinds`` counts layers by kind and, within a kind, by the precision of their outputs.
    """

    kinds: dict[str, dict[str, int]]
    attentions: tuple[AttentionLayer, ...]


class EngineComponent(Record):
    """One compiled component.

    ``file`` is the file that the backend opens, ``weights`` the file of weights beside it, ``precision`` the precision
    of its arithmetic. ``batch`` is the range of the batch axis; None for any size. ``seconds`` is the build time,
    ``peak_memory_bytes`` the peak memory of the process that built it; None if the system does not report it.
    ``options`` are options that the backend needs to open it, ``layers`` the compiled layers of engines that cannot be
    inspected.
    """

    file: str
    weights: str | None
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange | None
    seconds: float = Field(ge=0)
    size_bytes: int = Field(ge=0)
    options: dict[str, str]
    peak_memory_bytes: int | None = None
    layers: LayerList | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it is opened from."""
        return (self.file,) if self.weights is None else (self.file, self.weights)


class EngineManifest(SealedManifest):
    """``manifest.json`` of an engine set. ``host`` holds the properties that the host must match.

    ``version_compatible`` is True if later versions of the library, of the same major version, can open it too. Omitted
    when False, so older manifests keep their digests.
    """

    backend: BackendName
    key: Digest
    bundle_digest: Digest
    components: dict[ComponentName, EngineComponent]
    host: dict[str, str]
    version_compatible: bool = Field(default=False, exclude_if=lambda compatible: not compatible)

    def named_files(self) -> set[str]:
        """Return the components' files, the tokenizer and the scheduler's config."""
        return {TOKENIZER, SCHEDULER, *(file for part in self.components.values() for file in part.files)}

    @classmethod
    def of(cls, folder: Path) -> EngineManifest:
        """Read the manifest of a set's folder, for inspection only: no file is checked.

        Raises:
            EngineError: The manifest is missing or malformed.
        """
        return parse_manifest(folder, read_manifest(folder, EngineError), cls, EngineError)


def _as_it_is(error: TrustError) -> TrustError:
    return error


@dataclass(frozen=True)
class EngineSet:
    """An opened engine set, which gc does not remove during the lifetime of this object.

    The sizes of all files, and the digests of tokenizer and scheduler, match the manifest. The engines' digests are
    checked when the set is opened or, with ``verify=False``, by `check` and `read` before a file is used, since a run
    opens only some of the engines.

    ``digest`` is the SHA-256 of its manifest and so covers every file. ``in_private_store`` is True for a set that is
    trusted because only this user can write to its store; compiled kernels there are trusted too. ``refuse`` returns
    the error to raise if a file does not match its digest. ``named`` is the checkpoint that the user
    named, if another one with the same weights was exported first.
    """

    path: Path
    manifest: EngineManifest
    digest: str
    lease: Lease = field(repr=False, compare=False)
    in_private_store: bool = field(default=False, compare=False)
    named: CheckpointRecord | None = field(default=None, compare=False)
    refuse: Callable[[TrustError], TrustError] = field(default=_as_it_is, repr=False, compare=False)
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    @system_errors()
    def open(
        cls, path: Path, *, trust: str | None = None, private_root: Path | None = None, verify: bool = True
    ) -> EngineSet:
        """Open an engine set folder after checking that it is trusted and that its files match the manifest.

        Args:
            path: The folder.
            trust: SHA-256 of its manifest.json, if the user trusts it.
            private_root: The store's folder; a set in it is trusted if no other user can write there.
            verify: Hash the engines now, instead of each before its first use.

        Raises:
            EngineError: The manifest or a file is missing or malformed.
            TrustError: It is neither in the store nor trusted by digest, others can write to it, or a digest differs.
            ResourceError: The store belongs to another user, or a file cannot be read.
        """
        lease = Lease(path)
        try:
            data = read_manifest(path, EngineError)
            digest = sha256_bytes(data)
            _check_trust(path, digest, trust, private_root)
            manifest = parse_manifest(path, data, EngineManifest, EngineError)
            engines = {file for part in manifest.components.values() for file in part.files}
            hashed = [file for file in manifest.files if verify or file not in engines]
            check_files(path, manifest, hashed, EngineError)
        except BaseException:
            lease.release()
            raise
        return cls(path, manifest, digest, lease, in_private_store=trust is None, _checked=set(hashed))

    def check(self, name: ComponentName) -> None:
        """Raise TrustError unless a component's files match their digests; each file is hashed once.

        Raises:
            EngineError: The set does not hold the component.
            TrustError: A file does not match its digest.
        """
        for file in self.component(name).files:
            if file not in self._checked:
                self._compare(file, sha256_file(self.path / file))
                self._checked.add(file)

    def read(self, file: str) -> bytearray:
        """Read a whole file of the set and check its digest.

        Raises:
            TrustError: The bytes do not match the digest.
        """
        data, sha256 = read_with_sha256(self.path / file)
        self._compare(file, sha256)
        return data

    def _compare(self, file: str, sha256: str) -> None:
        if sha256 != self.manifest.files[file].sha256:
            hint = "build the engines again, or copy them again"
            raise self.refuse(TrustError(f"{self.path / file} does not match its digest in {MANIFEST}", hint=hint))

    @property
    def checkpoint(self) -> CheckpointRecord:
        """The checkpoint of these engines, by the name that the user gave."""
        return self.named or self.manifest.checkpoint

    def component(self, name: ComponentName) -> EngineComponent:
        """Return a component's record.

        Raises:
            EngineError: The set does not hold the component.
        """
        if name not in self.manifest.components:
            held = ", ".join(self.manifest.components)
            hint = "build again with this component"
            if name in DEEPCACHE:
                hint = "build engines for DeepCache: sdrt build --deepcache, or Pipeline.load(..., deepcache=True)"
            raise EngineError(f"{self.path} holds no {name}, only {held}", hint=hint)
        return self.manifest.components[name]

    @property
    def tokenizer(self) -> Path:
        """Path of the tokenizer.json."""
        return self.path / TOKENIZER

    @property
    def scheduler(self) -> Path:
        """Path of the scheduler_config.json."""
        return self.path / SCHEDULER

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(record.size_bytes for record in self.manifest.files.values())


def check_private(folders: Iterable[Path]) -> None:
    """Raise unless only this user can write to the folders, whose files are opened as code.

    Raises:
        ResourceError: A folder belongs to another user.
        TrustError: The group or everybody can write to a folder.
    """
    for folder in folders:
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise ResourceError(f"{folder} belongs to user {status.st_uid}", hint="choose another store with --store")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            hint = f"run: chmod go-w {folder}, or choose another store with --store"
            raise TrustError(f"others can write to {folder}, so what it holds is not trusted", hint=hint)


def _check_trust(path: Path, digest: str, trust: str | None, private_root: Path | None) -> None:
    if trust is not None:
        if trust != digest:
            raise TrustError(
                f"{path} has the digest {digest}, not {trust}", hint="copy the set again, or check the digest"
            )
        if path.stat().st_mode & stat.S_IWOTH:
            raise TrustError(f"everybody can write to {path}", hint=f"run: chmod o-w {path}")
        return
    if private_root is not None and path.resolve().is_relative_to(private_root.resolve()):
        inside = path.resolve().relative_to(private_root.resolve())
        check_private([private_root, *(private_root / parent for parent in inside.parents), path])
        return
    hint = f"if you trust its origin, give --trust {digest}"
    raise TrustError(f"{path} is neither in the store nor trusted by its digest", hint=hint)
