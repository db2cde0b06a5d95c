"""A checkpoint in one .safetensors file, the original layout in which fine-tunes are shared: converted to a folder.

Such a file has no configs: it has Stable Diffusion v1's, which ship with this package. Converting renames tensors and
copies their bytes; nothing is decoded, so it takes no memory to speak of and no torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sdrt.checkpoint.clip_vocabulary import SD_V1, write_clip_tokenizer
from sdrt.checkpoint.configs import LATENT_CHANNELS, V1_HINT, read_json
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.ldm_names import NAMES, PREFIXES
from sdrt.checkpoint.safetensors_header import Header, TensorEntry, header_bytes, read_header
from sdrt.checkpoint.weights import weight_names
from sdrt.errors import CheckpointError, TimeLimitError
from sdrt.files import canonical_json, disk_errors, folder_published_as

LOCK_TIMEOUT_S = 900.0
COPY_BYTES = 8 << 20
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
# A tensor whose name holds the text -> what the file is. Looked up in this order.
OTHER_KINDS = {
    "lora_": "a LoRA",
    ".lora": "a LoRA",
    "control_model.": "a ControlNet",
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion v2",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "motion_modules.": "AnimateDiff",
}
OTHER_INPUTS: dict[tuple[int, ...], str] = {
    (8,): "an image-editing (pix2pix) checkpoint",
    (9,): "an inpainting checkpoint",
}
V_PREDICTION_MARK = "v_pred"
ZERO_SNR_MARK = "ztsnr"


def converted_folder(path: Path, cache: Path, memory: DigestMemory, configs: Path = SD_V1) -> Path:
    """The diffusers layout of a single file, converted into the cache unless it is there already.

    Args:
        path: The .safetensors file.
        cache: The folder is ``single-file/<digest of the file>`` below it, so a changed file is converted anew.
        memory: Where the file's digest is remembered.
        configs: Folder with the configs of its networks, in the diffusers layout.

    Raises:
        CheckpointError: The file is malformed or not a whole Stable Diffusion v1 checkpoint.
        ResourceError: The cache cannot be written.
        TimeLimitError: Another process holds the conversion for too long.
    """
    from filelock import FileLock, Timeout

    header = read_header(path)
    check_kind(path, header)
    _check_width(path, header, read_json(configs / "unet" / "config.json"))
    folder = cache / "single-file" / memory.sha256(path)
    if folder.is_dir():
        return folder
    lock = folder.with_suffix(".lock")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=LOCK_TIMEOUT_S):
            if not folder.is_dir():
                with folder_published_as(folder) as part:
                    convert(path, header, part, configs)
    except Timeout as error:
        hint = f"wait for the other process, or remove {lock} if there is none"
        raise TimeLimitError(f"another process has held {lock} for {LOCK_TIMEOUT_S:.0f} s", hint=hint) from error
    return folder


def check_kind(path: Path, header: Header) -> None:
    """Tell a whole Stable Diffusion v1 checkpoint from what else is shared as one file, by its tensors' names.

    Raises:
        CheckpointError: It is something else; the message says what, where it is known.
    """
    names = header.tensors.keys()
    found = next((kind for mark, kind in OTHER_KINDS.items() if any(mark in name for name in names)), None)
    if found is None and CONV_IN in names:
        found = OTHER_INPUTS.get(header.tensors[CONV_IN].shape[1:2])
    if found is not None:
        raise CheckpointError(f"{path} is {found}; expected Stable Diffusion v1", hint=V1_HINT)
    for component, prefix in PREFIXES.items():
        if not any(name.startswith(prefix) for name in names):
            hint = "give a whole checkpoint: text encoder, UNet and VAE in one file"
            raise CheckpointError(f"{path} has no {component}: no tensor's name starts with {prefix}", hint=hint)
    if ZERO_SNR_MARK in names:
        hint = "give a checkpoint with Stable Diffusion v1's noise schedule"
        raise CheckpointError(f"{path} asks for a zero-terminal-SNR noise schedule ({ZERO_SNR_MARK})", hint=hint)


def _check_width(path: Path, header: Header, unet: Mapping[str, Any]) -> None:
    """Hold the UNet's first layer against the config before anything is copied; all others are when it is loaded."""
    expected = [unet["block_out_channels"][0], LATENT_CHANNELS, 3, 3]
    found = list(header.tensors[CONV_IN].shape) if CONV_IN in header.tensors else []
    if found != expected:
        hint = "a single file has no configs; give a checkpoint of other widths as a folder in the diffusers layout"
        message = f"{path}: {CONV_IN} has shape {found}; Stable Diffusion v1 has {expected}"
        raise CheckpointError(message, hint=hint)


def convert(path: Path, header: Header, out: Path, configs: Path = SD_V1) -> None:
    """Write the diffusers layout of a single file to an empty folder.

    What a training run left in the file besides the three networks (EMA weights, the noise schedule's buffers) is left
    out, as diffusers does.
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
            for component in PREFIXES:
                (out / component).mkdir()
                config = read_json(configs / component / "config.json")
                (out / component / "config.json").write_bytes(canonical_json(config))
                tensors = rename(path, component, header, config)
                target = out / component / weight_names(component)[0]
                with target.open("wb") as file:
                    _copy_tensors(source, header.data_start, tensors, file)


def rename(path: Path, component: str, header: Header, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """The tensors of one component under their names in the diffusers layout.

    Raises:
        CheckpointError: Two tensors come to one name.
    """
    renamed: dict[str, TensorEntry] = {}
    prefix = PREFIXES[component]
    for name in sorted(header.tensors):
        if not name.startswith(prefix) or name.startswith(f"{prefix}loss.") or "model_ema." in name:
            continue
        new = NAMES[component](name.removeprefix(prefix), config)
        if new in renamed:
            raise CheckpointError(f"{path}: {name} comes to the same tensor as another", hint="save the file again")
        renamed[new] = header.tensors[name]
    return renamed


def _copy_tensors(source: BinaryIO, data_start: int, tensors: Mapping[str, TensorEntry], target: BinaryIO) -> None:
    """Write a safetensors file whose tensors' bytes come from another one; equal tensors give equal bytes."""
    target.write(header_bytes({name: (tensors[name].dtype, _shape(name, tensors[name])) for name in sorted(tensors)}))
    for name in sorted(tensors):
        source.seek(data_start + tensors[name].begin)
        left = tensors[name].end - tensors[name].begin
        while left:
            block = source.read(min(left, COPY_BYTES))
            if not block:
                raise CheckpointError(f"{source.name} became shorter while it was read", hint="convert it again")
            target.write(block)
            left -= len(block)


def _shape(name: str, entry: TensorEntry) -> list[int]:
    """The shape in the diffusers layout: the VAE's attention is 1x1 convolutions there and linear layers here."""
    if ".attentions.0.to_" in name and math.prod(entry.shape[2:]) == 1:
        return list(entry.shape[:2])
    return list(entry.shape)
