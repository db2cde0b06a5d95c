"""Conversion of checkpoints in one .safetensors file (original layout) to a folder in the diffusers layout.

Such a file has no configs; Stable Diffusion v1's, which this package contains, are used. `plan` compares its header
with them before anything is written. Conversion renames tensors and copies their bytes, so it needs little memory and
no torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from sdrt.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sdrt.checkpoint.clip_vocabulary import SD_V1, write_clip_tokenizer
from sdrt.checkpoint.configs import V1_HINT, read_json
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.file_kinds import MOST_TENSORS, WHOLE_HINT, WITHOUT_HINT, other_kind, partial_kind
from sdrt.checkpoint.ldm_names import NAMES, PREFIXES, split_name
from sdrt.checkpoint.ldm_shapes import SHAPES
from sdrt.checkpoint.misplaced import pipeline_folder
from sdrt.checkpoint.safetensors_header import Header, TensorEntry, header_bytes, read_header
from sdrt.checkpoint.surplus import UNKNOWN_HINT, SurplusKind, surplus_kind, unwrapped
from sdrt.checkpoint.weight_file import CONVERTED, FLOATS, WeightTensor, reading_notes
from sdrt.checkpoint.weights import weight_names
from sdrt.errors import CheckpointError, TimeLimitError
from sdrt.files import canonical_json, disk_errors, folder_published_as, utf8_text

LOCK_TIMEOUT_S = 900.0
COPY_BYTES = 8 << 20
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
V_PREDICTION_MARK = "v_pred"
#: Noise schedules other than Stable Diffusion v1's, by the tensor that marks them in a file.
OTHER_NOISE = {
    "ztsnr": "a zero-terminal-SNR noise schedule",
    "edm_vpred.sigma_max": "EDM's noise levels",
    "edm_vpred.sigma_min": "EDM's noise levels",
}
TYPES = (*FLOATS, *CONVERTED)
#: Unsigned integer dtype and exponent mask by float dtype; the exponent of NaN and Inf is all ones.
EXPONENTS = {
    "F8_E5M2": ("u1", 0x7C),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
}


@dataclass(frozen=True)
class Plan:
    """The tensors that a conversion reads.

    Attributes:
        tensors: Name in the file, by component and by name in the diffusers layout.
        notes: Lines about tensors that are renamed, ignored or converted.
    """

    tensors: dict[str, dict[str, str]]
    notes: tuple[str, ...]


def open_single_file(path: Path, cache: Path, memory: DigestMemory, configs: Path = SD_V1) -> Checkpoint:
    """Convert a single file to a folder in the cache, unless it is there already, and describe it.

    Args:
        path: The .safetensors file.
        cache: Cache folder; the result is ``single-file/<digest of the file>``, so a changed file is converted again.
        memory: Cache of the file's digest.
        configs: Folder of configs in the diffusers layout.

    Returns:
        The checkpoint, named after the file; its path is the folder in the cache.

    Raises:
        CheckpointError: The file is malformed or not a whole Stable Diffusion v1 checkpoint; nothing stays in
            the cache.
        ResourceError: The cache cannot be written.
        TimeLimitError: Another process holds the conversion for too long.
    """
    header = read_header(path)
    planned = plan(path, header, configs)
    folder = cache / "single-file" / memory.sha256(path)
    if not folder.is_dir():
        _convert_once(path, header, planned, folder, configs)
    return replace(read_checkpoint(folder, name=utf8_text(path.stem), memory=memory), notes=planned.notes)


def _convert_once(path: Path, header: Header, planned: Plan, folder: Path, configs: Path) -> None:
    """Convert a file to a folder, unless another process does so meanwhile.

    Raises:
        CheckpointError: As in `convert`; nothing is left behind.
        ResourceError: The cache cannot be written.
        TimeLimitError: Another process holds the conversion for too long.
    """
    from filelock import FileLock, Timeout

    lock = folder.with_suffix(".lock")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=LOCK_TIMEOUT_S):
            if not folder.is_dir():
                try:
                    with folder_published_as(folder) as part:
                        convert(path, header, planned, part, configs)
                except CheckpointError:
                    # A process that waits for the lock finds it unlinked and creates it again.
                    lock.unlink(missing_ok=True)
                    raise
    except Timeout as error:
        hint = f"wait for the other process, or remove {lock} if there is none"
        raise TimeLimitError(f"another process has held {lock} for {LOCK_TIMEOUT_S:.0f} s", hint=hint) from error


def plan(path: Path, header: Header, configs: Path = SD_V1) -> Plan:
    """Match a file's tensors with the three networks by names, shapes and dtypes.

    Other tensors of training (EMA weights, the noise schedule's buffers, CLIP's position ids) are ignored, as diffusers
    does.

    Raises:
        CheckpointError: The file is not a whole Stable Diffusion v1 checkpoint; the message says what it is, if known,
            or names the first tensor that does not fit.
    """
    check_kind(path, header)
    found: dict[str, dict[str, str]] = {component: {} for component in PREFIXES}
    ignored: dict[SurplusKind, list[str]] = {}
    for name in sorted(header.tensors):
        component, inner = split_name(unwrapped(name))
        kind = surplus_kind(component, inner)
        if kind is None and component:
            found[component][name] = inner
        elif kind is not None and kind.hint is not None:
            raise CheckpointError(f"{path} has tensors of {kind.what} ({name})", hint=kind.hint)
        elif kind is not None and not kind.usual and component:
            ignored.setdefault(kind, []).append(name)
    tensors = {
        component: _match(path, header, component, found[component], read_json(configs / component / "config.json"))
        for component in ("unet", "text_encoder", "vae")
    }
    names = [name for matched in tensors.values() for name in matched.values()]
    repaired = [name for name in names if unwrapped(name) != name]
    read = [WeightTensor(name, header.tensors[name]) for name in names]
    return Plan(tensors, reading_notes(path, ignored, repaired, read))


def check_kind(path: Path, header: Header) -> None:
    """Raise CheckpointError unless the tensors' names are those of a whole Stable Diffusion v1 checkpoint.

    Raises:
        CheckpointError: It is another kind of file; the message says which, if known.
    """
    count = len(header.tensors)
    if not 0 < count <= MOST_TENSORS:
        held = f"{count:,} tensors; a checkpoint has at most {MOST_TENSORS:,}" if count else "no tensors"
        raise CheckpointError(f"{path} holds {held}", hint=WHOLE_HINT)
    tensors = {unwrapped(name): entry for name, entry in header.tensors.items()}
    components = {split_name(name)[0] for name in tensors} - {""}
    kind = other_kind(tensors)
    if kind is None and len(components) < 2:
        kind = partial_kind(tensors)
    if kind is not None:
        if kind.adapter and components == PREFIXES.keys():
            raise CheckpointError(f"{path} holds {kind.what} beside the checkpoint", hint=WITHOUT_HINT)
        folder = None if kind.adapter else pipeline_folder(path)
        hint = f"give the folder it belongs to: {folder}" if folder else kind.hint
        raise CheckpointError(f"{path} is {kind.what}; expected Stable Diffusion v1", hint=hint)
    if not components:
        first = min(header.tensors)[:100]
        message = f"{path} has no known layout: no tensor is named as in Stable Diffusion v1 (first: {first})"
        raise CheckpointError(message, hint=WHOLE_HINT)
    for component, prefixes in PREFIXES.items():
        if component not in components:
            message = f"{path} has no {component}: no tensor's name starts with {' or '.join(prefixes)}"
            raise CheckpointError(message, hint=WHOLE_HINT)
    for mark, noise in OTHER_NOISE.items():
        if mark in tensors:
            hint = "give a checkpoint with Stable Diffusion v1's noise schedule"
            raise CheckpointError(f"{path} requires {noise} ({mark})", hint=hint)


def _match(
    path: Path, header: Header, component: str, names: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """Return the name in the file by name in the diffusers layout, for all tensors of one network.

    Raises:
        CheckpointError: A tensor is missing, unknown, duplicate, of another shape or of an unsupported dtype.
    """
    rename = NAMES[component]
    shapes = SHAPES[component](config)
    expected = {rename(name, config): (name, shape) for name, shape in shapes.items()}
    matched: dict[str, str] = {}
    unknown, misshapen = [], []
    for name, inner in names.items():
        new = rename(inner, config)
        # unet_name maps some unknown names, at another place of a level, to known ones.
        if new not in expected or (component == "unet" and inner not in shapes and new != inner):
            unknown.append(name)
            continue
        if new in matched:
            message = f"{path}: {name} and {matched[new]} are the same tensor under two names"
            raise CheckpointError(message, hint="remove one of the two, or give the file it was merged from")
        matched[new] = name
        if not _fits(new, header.tensors[name].shape, expected[new][1]):
            misshapen.append((name != CONV_IN, name, expected[new][1]))
    if misshapen:
        _, name, shape = min(misshapen)
        hint = "a single file has no configs; give a checkpoint of other widths as a folder in the diffusers layout"
        message = f"{path}: {name} has shape {list(header.tensors[name].shape)}; Stable Diffusion v1 has {list(shape)}"
        raise CheckpointError(message, hint=hint)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        message = f"{path}: Stable Diffusion v1's {component} has no tensor {unknown[0]}{more}"
        raise CheckpointError(message, hint=V1_HINT if len(unknown) > 1 else UNKNOWN_HINT)
    missing = [name for new, (name, _) in expected.items() if new not in matched]
    if missing:
        message = (
            f"{path} lacks {len(missing)} of the {component}'s {len(expected)} tensors; "
            f"the first is {PREFIXES[component][0]}{missing[0]}"
        )
        raise CheckpointError(message, hint=WHOLE_HINT)
    for name in matched.values():
        if header.tensors[name].dtype not in TYPES:
            message = f"{path}: {name} is {header.tensors[name].dtype}; expected {', '.join(TYPES)}"
            raise CheckpointError(message, hint="get the checkpoint in fp32, fp16 or bf16")
    return matched


def _fits(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes match; the VAE's attention may be 1x1 convolutions or linear layers."""
    is_attention = name.startswith(("encoder.", "decoder.")) and ".attentions." in name
    return found == expected or (is_attention and expected[2:] == (1, 1) and found == expected[:2])


def convert(path: Path, header: Header, planned: Plan, out: Path, configs: Path = SD_V1) -> None:
    """Write a single file in the diffusers layout to an empty folder.

    Raises:
        CheckpointError: A tensor holds NaN or Inf, or the file was truncated meanwhile.
    """
    scheduler = read_json(configs / "scheduler" / "scheduler_config.json")
    if V_PREDICTION_MARK in header.tensors:
        scheduler["prediction_type"] = "v_prediction"
    with disk_errors(out):
        shutil.copyfile(configs / "model_index.json", out / "model_index.json")
        write_clip_tokenizer(out / "tokenizer")
        (out / "scheduler").mkdir()
        (out / "scheduler" / "scheduler_config.json").write_bytes(canonical_json(scheduler))
        with path.open("rb") as source:
            for component, names in planned.tensors.items():
                (out / component).mkdir()
                config = read_json(configs / component / "config.json")
                (out / component / "config.json").write_bytes(canonical_json(config))
                with (out / component / weight_names(component)[0]).open("wb") as target:
                    _copy_tensors(source, header, names, target)


def _copy_tensors(source: BinaryIO, header: Header, names: Mapping[str, str], target: BinaryIO) -> None:
    """Copy tensors of one safetensors file to a new one; equal tensors give equal bytes."""
    entries = {new: header.tensors[names[new]] for new in sorted(names)}
    target.write(header_bytes({new: (entry.dtype, _shape(new, entry)) for new, entry in entries.items()}))
    for new, entry in entries.items():
        for block in _blocks(source, header.data_start + entry.begin, entry.end - entry.begin):
            if not _is_finite(block, entry.dtype):
                message = f"{source.name}: {names[new]} holds NaN or Inf"
                raise CheckpointError(message, hint="the weights are damaged; download or train them again")
            target.write(block)


def _blocks(source: BinaryIO, begin: int, size_bytes: int) -> Iterator[bytes]:
    source.seek(begin)
    while size_bytes:
        block = source.read(min(size_bytes, COPY_BYTES))
        if not block:
            raise CheckpointError(f"{source.name} was truncated while it was read", hint="convert it again")
        yield block
        size_bytes -= len(block)


def _is_finite(block: bytes, dtype: str) -> bool:
    """Return whether a tensor's values, converted to float32, are finite."""
    import numpy as np

    if dtype == "F64":
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.frombuffer(block, "<f8").astype(np.float32)).all())
    if dtype == "F8_E4M3":  # it has no Inf, and one NaN of either sign
        return not bool(((np.frombuffer(block, "u1") & 0x7F) == 0x7F).any())
    kind, exponent = EXPONENTS[dtype]
    return not bool(((np.frombuffer(block, kind) & exponent) == exponent).any())


def _shape(name: str, entry: TensorEntry) -> list[int]:
    """Return the shape in the diffusers layout, which has linear layers in the VAE's attention."""
    if ".attentions.0.to_" in name and math.prod(entry.shape[2:]) == 1:
        return list(entry.shape[:2])
    return list(entry.shape)
