"""An engine set: what one backend compiled from one bundle, sealed by ``manifest.json``."""

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

    @property
    def files(self) -> tuple[str, ...]:
        """What it is opened from."""
        return (self.file,) if self.weights is None else (self.file, self.weights)


class EngineManifest(SealedManifest):
    """``manifest.json`` of an engine set. ``host`` says what the host that opens it must have.

    ``version_compatible`` says that later versions of the same major of the library open it too. Where they do not the
    field is not written: the manifest is what it was before there was such a thing.
    """

    backend: BackendName
    key: Digest
    bundle_digest: Digest
    components: dict[ComponentName, EngineComponent]
    host: dict[str, str]
    version_compatible: bool = Field(default=False, exclude_if=lambda compatible: not compatible)

    def named_files(self) -> set[str]:
        """What the components are opened from, the tokenizer and the scheduler's config."""
        return {TOKENIZER, SCHEDULER, *(file for part in self.components.values() for file in part.files)}

    @classmethod
    def of(cls, folder: Path) -> EngineManifest:
        """The manifest of a set's folder, to be looked at: this opens no set, and vouches for nothing.

        Raises:
            EngineError: It is missing or malformed.
        """
        return parse_manifest(folder, read_manifest(folder, EngineError), cls, EngineError)


def _as_it_is(error: TrustError) -> TrustError:
    return error


@dataclass(frozen=True)
class EngineSet:
    """An opened engine set, which no gc removes while this lives.

    Every file has the size that its manifest gives, and tokenizer and scheduler have their digests. Engines are held to
    theirs when the set is opened or, where it was opened to be run, by `check` and `read` before anything of theirs is
    opened: a run opens some of them alone.

    ``digest`` is the SHA-256 of its manifest and so covers every file. ``in_private_store`` is True for a set that is
    trusted because only this user can write to the store that holds it; other code of this user there, such as
    compiled kernels, can be trusted too. ``named`` is the checkpoint that the user named, if another one with the same
    weights was exported first.
    """

    path: Path
    manifest: EngineManifest
    digest: str
    lease: Lease = field(repr=False, compare=False)
    in_private_store: bool = field(default=False, compare=False)
    named: CheckpointRecord | None = field(default=None, compare=False)
    # What to do with a set one of whose engines is not what was sealed.
    refuse: Callable[[TrustError], TrustError] = field(default=_as_it_is, repr=False, compare=False)
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    @system_errors()
    def open(
        cls, path: Path, *, trust: str | None = None, private_root: Path | None = None, verify: bool = True
    ) -> EngineSet:
        """Open an engine set folder after checking that it may be trusted and that its files are what was sealed.

        Args:
            path: The folder.
            trust: SHA-256 of its manifest.json, where the user vouches for it.
            private_root: The store's folder: a set in it is trusted, if nobody else can write there.
            verify: Whether engines are hashed at once, rather than each when it is opened.

        Raises:
            EngineError: The manifest or a file is missing or malformed.
            TrustError: It is neither in the store nor vouched for, others can write to it, or a digest differs.
            ResourceError: The store belongs to somebody else, or a file cannot be read.
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
        """Raise a TrustError unless what a component is opened from is what was sealed; each file is hashed once.

        Raises:
            EngineError: The set does not hold the component.
        """
        for file in self.component(name).files:
            if file not in self._checked:
                self._compare(file, sha256_file(self.path / file))
                self._checked.add(file)

    def read(self, file: str) -> bytearray:
        """Read one of the set's files whole.

        Raises:
            TrustError: These bytes are not what was sealed.
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
        """The checkpoint that it is of, by the name that the user gave."""
        return self.named or self.manifest.checkpoint

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
