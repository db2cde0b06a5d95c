"""Manifests: the schema of a bundle's ``manifest.json``, and functions that read, check and write any manifest."""

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
#: Largest file of a bundle except weights; such files are hashed on every opening and read whole.
FILE_LIMIT_BYTES = 64 << 20
Precision = Literal["fp32", "bf16", "fp16", "int8"]
ComponentName = Literal[
    "text_encoder", "unet", "denoise_step", "deepcache_whole", "deepcache_shallow", "vae_encoder", "vae_decoder"
]
COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
#: DeepCache's two passes of the UNet: the whole UNet, and its outer layers on features of the whole pass.
DEEPCACHE: tuple[ComponentName, ...] = ("deepcache_whole", "deepcache_shallow")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: One token of each 2x2 block remains, so at most 3 of 4 can be merged.
MAX_TOKEN_MERGING = 0.75
TokenMerging = Annotated[float, Field(gt=0, le=MAX_TOKEN_MERGING)]


class Record(BaseModel):
    """A part of a manifest: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Record):
    """One input or output. ``shape`` holds sizes and names of dynamic axes, such as ``("batch", 4, 64, 64)``."""

    name: str
    dtype: Literal["float32", "float16", "int64"]
    shape: tuple[int | str, ...]


class Component(Record):
    """One graph of the bundle. ``parameters`` and ``flops`` (of one sample) are counts.

    Two components may share one ``weights`` file. ``max_activation`` is the largest absolute output of any submodule of
    the fp32 module on real latents; measured for fp16 exports only, where it decides ``precision``.
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
    """The exported checkpoint. ``digest`` covers all exported weights and configs.

    ``variant`` is omitted for plain weights, so older manifests keep their digests.
    """

    name: str
    digest: Digest
    revision: str | None = None
    variant: str | None = Field(default=None, exclude_if=lambda variant: variant is None)


class ModelRecord(Record):
    """Numbers of the checkpoint's configs that the runtime needs, bounded so that buffers can be allocated.

    ``guidance_scale`` is the scale that the checkpoint recommends, the default of a request. Omitted when 7.5, so older
    manifests keep their digests.
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
    """The fields that manifests of bundles and engine sets share. ``files`` are all other files of the folder.

    ``token_merging`` is the ratio of tokens that the UNet merges (see sdrt.export.token_merging). Omitted when nothing
    is merged, so older manifests keep their digests.
    """

    schema_version: Literal[1]
    checkpoint: CheckpointRecord
    precision: Precision
    model: ModelRecord
    files: dict[str, FileRecord]
    versions: dict[str, str]
    token_merging: TokenMerging | None = Field(default=None, exclude_if=lambda ratio: ratio is None)

    def named_files(self) -> set[str]:
        """Return the files that other fields name, each of which must be in ``files``."""
        raise NotImplementedError


class Manifest(SealedManifest):
    """``manifest.json`` of a bundle."""

    opset: int
    components: dict[ComponentName, Component]

    def named_files(self) -> set[str]:
        """Return the files of the graphs and of their weights."""
        return self.weights() | {component.graph for component in self.components.values()}

    def weights(self) -> set[str]:
        """Return the files of weights."""
        return {component.weights for component in self.components.values() if component.weights}


AnyManifest = TypeVar("AnyManifest", bound=SealedManifest)
AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def check_token_merging(ratio: float | None) -> None:
    """Raise UsageError unless a token merging ratio is None (no merging) or in (0, 0.75]."""
    if ratio is not None and not 0 < ratio <= MAX_TOKEN_MERGING:
        hint = "0.5 merges half of the tokens; leave it out to merge none"
        raise UsageError(f"token_merging is {ratio}; it must be above 0 and up to {MAX_TOKEN_MERGING}", hint=hint)


def first_problem(error: ValidationError) -> str:
    """Return the first field that a validation refuses and why, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read_manifest(folder: Path, kind: type[SdrtError]) -> bytes:
    """Read the bytes of a folder's manifest and check what needs no schema: size, JSON and schema version.

    Args:
        folder: The folder of the manifest.
        kind: Class of the errors.

    Raises:
        SdrtError: Of the given kind: the manifest is missing, too large, no JSON object or from a newer sdrt.
        TrustError: It is a link, or anything but a plain file.
    """
    # A link may lead out of the folder, and reading a pipe may never end.
    path_inside(folder, MANIFEST)
    hint = f"give a folder that holds a {MANIFEST} written by sdrt"
    return read_versioned(folder / MANIFEST, kind, limit_bytes=MANIFEST_LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)


def read_versioned(path: Path, kind: type[SdrtError], *, limit_bytes: int, newest: int, hint: str) -> bytes:
    """Read the bytes of a JSON object with a schema version and check what needs no schema.

    Args:
        path: The file.
        kind: Class of the errors.
        limit_bytes: Largest size.
        newest: Newest schema version that can be read.
        hint: Hint of the errors about its contents.

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
    """Read a JSON file that sdrt wrote and validate it by its schema.

    Args:
        path: The file.
        schema: The class of the document.
        limit_bytes: Largest size.
        newest: Newest schema version that can be read.
        hint: Hint of the errors about its contents.

    Raises:
        ArtefactError: It is missing, malformed or from a newer sdrt; the message names the first wrong field.
    """
    data = read_versioned(path, ArtefactError, limit_bytes=limit_bytes, newest=newest, hint=hint)
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise ArtefactError(f"{path}: {first_problem(error)}", hint=hint) from error


def parse_manifest(folder: Path, data: bytes, schema: type[AnyManifest], kind: type[SdrtError]) -> AnyManifest:
    """Parse the bytes of a folder's manifest and check that ``files`` holds every file that another field names.

    Raises:
        SdrtError: Of the given kind: the first fault, in one line.
    """
    path, hint = folder / MANIFEST, "create it again with sdrt; manifests must not be edited"
    try:
        manifest = schema.model_validate_json(data)
    except ValidationError as error:
        raise kind(f"{path}: {first_problem(error)}", hint=hint) from error
    for name in sorted(manifest.named_files() - manifest.files.keys()):
        raise kind(f"{path}: {name} has no digest", hint=hint)
    return manifest


def check_files(folder: Path, manifest: SealedManifest, hashed: Iterable[str], kind: type[SdrtError]) -> None:
    """Compare a folder with its manifest: the sizes of all files, and the digests of the files in ``hashed``.

    Raises:
        SdrtError: Of the given kind: a file is missing.
        TrustError: A size or digest differs, or a path is a link or leaves the folder.
    """
    hint = "create it again from its source, or copy it again"
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
    """Write the manifest of an otherwise complete folder."""
    (folder / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Return size and digest of every file below the folder except the manifest, by relative POSIX path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileRecord(size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in paths
    }
