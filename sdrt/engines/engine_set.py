"""An engine set: what one backend compiled from one bundle, sealed by ``manifest.json``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sdrt.bundle import (
    DEEPCACHE,
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
from sdrt.engines.locks import Lease
from sdrt.errors import EngineError, ResourceError, TrustError
from sdrt.files import sha256_bytes

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


class EngineManifest(SealedManifest):
    """``manifest.json`` of an engine set. ``host`` says what the host that opens it must have."""

    backend: BackendName
    key: Digest
    bundle_digest: Digest
    components: dict[ComponentName, EngineComponent]
    host: dict[str, str]

    def named_files(self) -> set[str]:
        """What the components are opened from, the tokenizer and the scheduler's config."""
        parts = self.components.values()
        return {TOKENIZER, SCHEDULER, *(part.file for part in parts), *(part.weights for part in parts if part.weights)}

    @classmethod
    def of(cls, folder: Path) -> EngineManifest:
        """The manifest of a set's folder, to be looked at: this opens no set, and vouches for nothing.

        Raises:
            EngineError: It is missing or malformed.
        """
        return parse_manifest(folder, read_manifest(folder, EngineError), cls, EngineError)


@dataclass(frozen=True)
class EngineSet:
    """An opened engine set: every file has the digest its manifest gives, and no gc removes it while this lives.

    ``digest`` is the SHA-256 of its manifest and so covers every file. ``private`` says that it is trusted by right of
    lying in a store that nobody else can write to, so that what else this user puts there can be trusted too.
    """

    path: Path
    manifest: EngineManifest
    digest: str
    lease: Lease = field(repr=False, compare=False)
    private: bool = field(default=False, compare=False)

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
            data = read_manifest(path, EngineError)
            digest = sha256_bytes(data)
            _check_trust(path, digest, trust, private_root)
            manifest = parse_manifest(path, data, EngineManifest, EngineError)
            check_files(path, manifest, manifest.files, EngineError)
        except BaseException:
            lease.release()
            raise
        return cls(path, manifest, digest, lease, private=trust is None)

    def component(self, name: ComponentName) -> EngineComponent:
        """One component's record.

        Raises:
            EngineError: The set does not hold it.
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
