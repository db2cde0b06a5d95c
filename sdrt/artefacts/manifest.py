"""Manifests: the schema of a bundle's ``manifest.json``, and the reading and sealing of any."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdrt.errors import ArtefactError, SdrtError, TrustError, UsageError
from sdrt.files import canonical_json, path_inside, sha256_file, unreadable
from sdrt.limits import DEFAULT_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE, MAX_LATENT_CHANNELS, MAX_LATENT_SIZE

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 4 << 20
#: The largest file of a bundle but its weights: they are hashed on every opening, and read whole.
FILE_LIMIT_BYTES = 64 << 20
Precision = Literal["fp32", "bf16", "fp16", "int8"]
ComponentName = Literal[
    "text_encoder", "unet", "denoise_step", "deepcache_whole", "deepcache_shallow", "vae_encoder", "vae_decoder"
]
COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
#: The UNet's two passes by DeepCache: all of it, and what runs on features that the other gave.
DEEPCACHE: tuple[ComponentName, ...] = ("deepcache_whole", "deepcache_shallow")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: Of each 2x2 tokens one takes in the others, so no more can be merged.
MAX_TOKEN_MERGING = 0.75
TokenMerging = Annotated[float, Field(gt=0, le=MAX_TOKEN_MERGING)]


class Record(BaseModel):
    """A part of a manifest: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Record):
    """One input or output. ``shape`` holds numbers and names of dynamic axes, as ``("batch", 4, 64, 64)``."""

    name: str
    dtype: Literal["float32", "float16", "int64"]
    shape: tuple[int | str, ...]


class Component(Record):
    """One graph of the bundle. ``parameters`` and ``flops`` (of one sample) are counts.

    Two components may name one ``weights`` file. ``max_activation`` is the largest absolute value that a submodule of
    the fp32 module gave on real latents; measured where fp16 is asked for, since it decides ``precision`` there.
    """

    graph: str
    weights: str | None
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int = Field(ge=0)
    flops: int = Field(ge=0)
    max_activation: float | None = None


class FileRecord(Record):
    """Size and SHA-256 of one file."""

    size_bytes: int = Field(ge=0)
    sha256: Digest


class CheckpointRecord(Record):
    """Where the weights came from. ``digest`` covers every weight and config that was exported.

    ``variant`` is omitted for plain weights, so older manifests keep their digests.
    """

    name: str
    digest: Digest
    revision: str | None = None
    variant: str | None = Field(default=None, exclude_if=lambda variant: variant is None)


class ModelRecord(Record):
    """The numbers of the checkpoint's configs that the runtime needs; within what can be allocated from them.

    ``guidance_scale`` is what the checkpoint recommends: pictures are drawn with it where nothing else is asked. Where
    that is 7.5 the field is not written: the manifest is what it was before there was such a thing.
    """

    latent_channels: int = Field(gt=0, le=MAX_LATENT_CHANNELS)
    latent_size: int = Field(gt=0, le=MAX_LATENT_SIZE)
    image_size: int = Field(gt=0, le=4096)
    scaling_factor: float = Field(gt=0)
    max_tokens: int = Field(gt=0, le=4096)
    hidden_size: int = Field(gt=0, le=16384)
    guidance_scale: float = Field(
        default=DEFAULT_GUIDANCE_SCALE,
        ge=-MAX_GUIDANCE_SCALE,
        le=MAX_GUIDANCE_SCALE,
        exclude_if=lambda scale: scale == DEFAULT_GUIDANCE_SCALE,
    )


class SealedManifest(Record):
    """What every ``manifest.json`` says: a bundle's, and an engine set's. ``files`` are all others in its folder.

    ``token_merging`` is the share of tokens that the UNet merges (see sdrt.export.token_merging). Where it merges none
    the field is not written: the manifest is what it was before there was such a thing.
    """

    schema_version: Literal[1]
    checkpoint: CheckpointRecord
    precision: Precision
    model: ModelRecord
    files: dict[str, FileRecord]
    versions: dict[str, str]
    token_merging: TokenMerging | None = Field(default=None, exclude_if=lambda ratio: ratio is None)

    def named_files(self) -> set[str]:
        """Files that the manifest counts on, each of which must be in ``files``."""
        raise NotImplementedError


class Manifest(SealedManifest):
    """``manifest.json`` of a bundle."""

    opset: int
    components: dict[ComponentName, Component]

    def named_files(self) -> set[str]:
        """The graphs and their weights."""
        return self.weights() | {component.graph for component in self.components.values()}

    def weights(self) -> set[str]:
        """The files of weights."""
        return {component.weights for component in self.components.values() if component.weights}


AnyManifest = TypeVar("AnyManifest", bound=SealedManifest)
AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def check_token_merging(ratio: float | None) -> None:
    """Hold that a share of tokens can be merged; None merges none.

    Raises:
        UsageError: It cannot.
    """
    if ratio is not None and not 0 < ratio <= MAX_TOKEN_MERGING:
        hint = "0.5 merges half of the tokens; leave it out to merge none"
        raise UsageError(f"token_merging is {ratio}; it must be above 0 and up to {MAX_TOKEN_MERGING}", hint=hint)


def first_problem(error: ValidationError) -> str:
    """Return the first field that a validation refuses and why, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read_manifest(folder: Path, kind: type[SdrtError]) -> bytes:
    """The bytes of a folder's manifest, after checks that need no schema: there, small, JSON, of no newer sdrt.

    Raises:
        SdrtError: Of the given kind, otherwise.
        TrustError: It is a link, or anything but a plain file.
    """
    # A link would lead out of the folder, and a pipe would never end.
    path_inside(folder, MANIFEST)
    hint = f"give a folder that holds a {MANIFEST} written by sdrt"
    return read_versioned(folder / MANIFEST, kind, limit_bytes=MANIFEST_LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)


def read_versioned(path: Path, kind: type[SdrtError], *, limit_bytes: int, newest: int, hint: str) -> bytes:
    """The bytes of a JSON object with a schema version, after checks that need no schema.

    Args:
        path: Its file.
        kind: Of the errors.
        limit_bytes: How large it may be.
        newest: Schema version up to which it can be read.
        hint: What to do where it is not such a file.

    Raises:
        SdrtError: Of the given kind: it cannot be read, is too large, no JSON object, or from a newer sdrt.
    """
    import json

    try:
        if path.stat().st_size > limit_bytes:
            raise kind(f"{path} is larger than {limit_bytes >> 20} MiB", hint=hint)
        data = path.read_bytes()
        version = json.loads(data).get("schema_version")
    except OSError as error:
        raise unreadable(path, error, kind, hint=hint) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise kind(f"{path} is not a JSON object", hint=hint) from error
    if isinstance(version, int) and version > newest:
        raise kind(f"{path} has schema version {version}; this sdrt reads up to {newest}", hint="upgrade sdrt")
    return data


def read_document(path: Path, schema: type[AnyDocument], *, limit_bytes: int, newest: int, hint: str) -> AnyDocument:
    """A JSON file that sdrt wrote, as a value of its schema.

    Args:
        path: The file, whatever it is named.
        schema: What it holds.
        limit_bytes: How large it may be.
        newest: Schema version up to which it can be read.
        hint: What to do where it is not such a file.

    Raises:
        ArtefactError: It is missing, malformed or from a newer sdrt; names the first field that is wrong.
    """
    data = read_versioned(path, ArtefactError, limit_bytes=limit_bytes, newest=newest, hint=hint)
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise ArtefactError(f"{path}: {first_problem(error)}", hint=hint) from error


def parse_manifest(folder: Path, data: bytes, schema: type[AnyManifest], kind: type[SdrtError]) -> AnyManifest:
    """The bytes of a folder's manifest as a value; every file that it counts on is named among its files.

    Raises:
        SdrtError: Of the given kind: the first thing that is wrong, in one line.
    """
    path, hint = folder / MANIFEST, "make it again with sdrt; a manifest is not edited by hand"
    try:
        manifest = schema.model_validate_json(data)
    except ValidationError as error:
        raise kind(f"{path}: {first_problem(error)}", hint=hint) from error
    for name in sorted(manifest.named_files() - manifest.files.keys()):
        raise kind(f"{path}: {name} has no digest", hint=hint)
    return manifest


def check_files(folder: Path, manifest: SealedManifest, hashed: Iterable[str], kind: type[SdrtError]) -> None:
    """Hold the folder against its manifest: every size, and the digest of the files named in ``hashed``.

    Raises:
        SdrtError: Of the given kind: a file is missing.
        TrustError: A size or digest differs, or a path is a link or leaves the folder.
    """
    hint = "make it again from its source, or copy it again"
    for name, record in manifest.files.items():
        path = path_inside(folder, name)
        if not path.exists():
            raise kind(f"{path} is missing", hint=hint)
        if path.stat().st_size != record.size_bytes:
            raise TrustError(
                f"{path} has {path.stat().st_size} bytes; its manifest says {record.size_bytes}", hint=hint
            )
    for name in hashed:
        if sha256_file(folder / name) != manifest.files[name].sha256:
            raise TrustError(f"{folder / name} does not match its digest in {MANIFEST}", hint=hint)


def seal(folder: Path, manifest: SealedManifest) -> None:
    """Write the manifest of a folder that is otherwise complete."""
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below the folder but the manifest, by relative POSIX path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileRecord(size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in paths
    }
