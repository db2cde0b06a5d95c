"""An engine set: what one backend compiled from one bundle, sealed by ``manifest.json``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from sdrt.bundle import (
    MANIFEST,
    CheckpointRecord,
    ComponentName,
    Digest,
    FileRecord,
    ModelRecord,
    Precision,
    Record,
    TensorSpec,
    check_files,
    read_record,
    schema_error,
)
from sdrt.engines.locks import Lease
from sdrt.errors import BundleError, EngineError, ResourceError, TrustError
from sdrt.files import canonical_json, sha256_bytes

SCHEMA_VERSION = 1
BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
TOKENIZER = "tokenizer/tokenizer.json"
SCHEDULER = "scheduler/scheduler_config.json"


class BatchRange(Record):
    """Batches an engine takes: ``min`` to ``max``, fastest at ``opt``."""

    min: int = Field(ge=1)
    opt: int
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self.min}, {self.opt}, {self.max} do not rise")
        return self


class AttentionLayer(Record):
    """One attention: ``heads`` of ``head_size``, ``queries`` tokens to ``keys``. ``fused``: one kernel computes it."""

    name: str
    heads: int
    queries: int
    keys: int
    head_size: int
    precision: str
    fused: bool


class LayerList(Record):
    """What a plan was compiled from, since a plan cannot be read without a GPU.

    ``kinds`` counts layers by kind and, within, by the precision of what they put out.
    """

    kinds: dict[str, dict[str, int]]
    attentions: tuple[AttentionLayer, ...]


class EngineComponent(Record):
    """One compiled component.

    ``file`` is what the backend opens, ``weights`` what lies beside it. ``precision`` says how it computes. ``batch``
    counts rows of the batch axis; None takes any. ``seconds`` is how long it took to build, ``peak_memory_bytes`` the
    most that the process which built it held; None where the system does not say. ``options`` are what the backend has
    to be told to open it, ``layers`` what was compiled, where the engine cannot be asked.
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


class EngineManifest(Record):
    """``manifest.json`` of an engine set. ``host`` says what the host that opens it must have."""

    schema_version: Literal[1]
    backend: BackendName
    key: Digest
    precision: Precision
    checkpoint: CheckpointRecord
    bundle_digest: Digest
    model: ModelRecord
    components: dict[ComponentName, EngineComponent]
    files: dict[str, FileRecord]
    versions: dict[str, str]
    host: dict[str, str]


def seal(folder: Path, manifest: EngineManifest) -> None:
    """Write the manifest of a folder that is otherwise complete."""
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))


def read_manifest(path: Path) -> EngineManifest:
    """The manifest of a set's folder, to be looked at: this opens no set, and vouches for nothing.

    Raises:
        EngineError: It is missing or malformed.
    """
    return _parse(path, read_record(path / MANIFEST, SCHEMA_VERSION, EngineError))


@dataclass(frozen=True)
class EngineSet:
    """An opened engine set: every file has the digest its manifest gives, and no gc removes it while this lives.

    ``digest`` is the SHA-256 of its manifest and so covers every file.
    """

    path: Path
    manifest: EngineManifest
    digest: str
    lease: Lease = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: Path, *, trust: str | None = None, private_root: Path | None = None) -> EngineSet:
        """Open an engine set folder after checking that it may be trusted and that every file is what was sealed.

        Args:
            path: The folder.
            trust: SHA-256 of its manifest.json, where the user vouches for it.
            private_root: The store's folder: a set in it is trusted, if nobody else can write there.

        Raises:
            EngineError: The manifest or a file is missing or malformed.
            TrustError: It is neither in the store nor vouched for, others can write to it, or a digest differs.
            ResourceError: The store belongs to somebody else.
        """
        lease = Lease(path)
        try:
            data = read_record(path / MANIFEST, SCHEMA_VERSION, EngineError)
            digest = sha256_bytes(data)
            _check_trust(path, digest, trust, private_root)
            manifest = _parse(path, data)
            _check_all_files(path, manifest)
        except BaseException:
            lease.release()
            raise
        return cls(path, manifest, digest, lease)

    def component(self, name: ComponentName) -> EngineComponent:
        """One component's record.

        Raises:
            EngineError: The set does not hold it.
        """
        if name not in self.manifest.components:
            held = ", ".join(self.manifest.components)
            raise EngineError(f"{self.path} holds no {name}, only {held}", hint="build again with this component")
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
    """Hold that nobody but this user can put files into the folders: what lies there is opened as code.

    Raises:
        ResourceError: One belongs to somebody else.
        TrustError: Its group or everybody can write to one.
    """
    for folder in folders:
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise ResourceError(
                f"{folder} belongs to user {status.st_uid}", hint="choose a store of yours with --store"
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            hint = f"run: chmod go-w {folder}, or choose another store with --store"
            raise TrustError(f"others can write to {folder}, so what it holds is not trusted", hint=hint)


def _check_trust(path: Path, digest: str, trust: str | None, private_root: Path | None) -> None:
    if trust is not None:
        if trust != digest:
            raise TrustError(f"{path} has the digest {digest}, not {trust}", hint="get the set again, or its digest")
        if path.stat().st_mode & stat.S_IWOTH:
            raise TrustError(f"everybody can write to {path}", hint=f"run: chmod o-w {path}")
        return
    if private_root is not None and path.resolve().is_relative_to(private_root.resolve()):
        inside = path.resolve().relative_to(private_root.resolve())
        check_private([private_root, *(private_root / parent for parent in inside.parents), path])
        return
    hint = f"if you trust where it came from, give --trust {digest}"
    raise TrustError(f"{path} is not in the store, and nothing vouches for it", hint=hint)


def _parse(path: Path, data: bytes) -> EngineManifest:
    """The manifest, with every file that it counts on named among its files."""
    try:
        manifest = EngineManifest.model_validate_json(data)
    except ValidationError as error:
        raise schema_error(path / MANIFEST, error, EngineError) from error
    parts = manifest.components.values()
    needed = {TOKENIZER, SCHEDULER} | {part.file for part in parts} | {part.weights for part in parts if part.weights}
    for name in sorted(needed - manifest.files.keys()):
        raise EngineError(f"{path / MANIFEST}: {name} has no digest", hint="build the engines again")
    return manifest


def _check_all_files(path: Path, manifest: EngineManifest) -> None:
    try:
        check_files(path, manifest.files, manifest.files)
    except BundleError as error:
        raise EngineError(error.message, hint=error.hint) from error
