"""A checkpoint's networks as torch modules. The one module of `sdrt.checkpoint` that imports torch.

Weights are read here rather than by diffusers' and transformers' loaders, so that every tensor is held against the
network by name and shape and looked at for NaN, and so that nothing is fetched, remembered or printed.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from sdrt.checkpoint.checkpoint import Checkpoint
from sdrt.checkpoint.safetensors_header import read_header
from sdrt.errors import CheckpointError
from sdrt.files import utf8_path

Module = TypeVar("Module", bound=torch.nn.Module)

FLOATS = ("F32", "F16", "BF16")
# What the libraries raise on configs that make no sense.
BAD_CONFIG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
HINT = "the weights do not belong to this config; download or save the checkpoint again"
# Parts of CLIP that files carry and a text encoder does not compute with.
HARMLESS = re.compile(r"(text_model\.)?embeddings\.position_ids|text_projection\.weight|logit_scale")
# Names of the attention in autoencoders saved by diffusers before 0.15, as those of v1.4.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_text_encoder(checkpoint: Checkpoint) -> CLIPTextModel:
    """The text encoder: input_ids int64 [n, tokens] -> last_hidden_state float32 [n, tokens, hidden_size]; eval().

    Raises:
        CheckpointError: The weights do not fit the config, are of a type we do not take, or hold NaN or Inf.
    """
    config = {key: value for key, value in checkpoint.text_encoder.items() if key not in ("dtype", "torch_dtype")}
    module: CLIPTextModel = _build("text_encoder", checkpoint, lambda: CLIPTextModel(CLIPTextConfig(**config)))
    return _load(module, checkpoint, "text_encoder")


def load_unet(checkpoint: Checkpoint) -> UNet2DConditionModel:
    """The UNet: sample float32 [n, 4, 64, 64], timestep, encoder_hidden_states -> sample; eval().

    Raises:
        CheckpointError: As in `load_text_encoder`.
    """
    config = checkpoint.unet
    module: UNet2DConditionModel = _build("unet", checkpoint, lambda: UNet2DConditionModel.from_config(dict(config)))
    return _load(module, checkpoint, "unet")


def load_vae(checkpoint: Checkpoint) -> AutoencoderKL:
    """The autoencoder: encode float32 [n, 3, h, w], decode latents [n, 4, h/8, w/8] before scaling; eval().

    Raises:
        CheckpointError: As in `load_text_encoder`.
    """
    config = checkpoint.vae
    module: AutoencoderKL = _build("vae", checkpoint, lambda: AutoencoderKL.from_config(dict(config)))
    return _load(module, checkpoint, "vae")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers and transformers from talking to the user about config keys they do not know."""
    before = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity(logging.ERROR)
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(before[0])
        transformers.logging.set_verbosity(before[1])


def _build(component: str, checkpoint: Checkpoint, make: Callable[[], Module]) -> Module:
    """A module of the config's shapes without memory for its weights.

    Raises:
        CheckpointError: The config does not describe such a network.
    """
    try:
        with _quiet(), torch.device("meta"):
            return make()
    except BAD_CONFIG as error:
        path = checkpoint.path / component / "config.json"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        hint = "download or save the checkpoint again"
        raise CheckpointError(f"{path} does not describe a network that can be built: {reason}", hint=hint) from error


def _load(module: Module, checkpoint: Checkpoint, component: str) -> Module:
    """Fill a module from the checkpoint's file, as float32. What is float32 in the file stays mapped, not copied."""
    path = checkpoint.weights(component)
    expected = module.state_dict()
    names = _match(path, component, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    tensors = {}
    with utf8_path(path) as spelled, safe_open(spelled, framework="pt") as file:
        for name_in_file, name in names.items():
            tensor = file.get_tensor(name_in_file).to(torch.float32).reshape(expected[name].shape)
            _check_finite(f"{component}/{name_in_file}", tensor, path)
            tensors[name] = tensor
    module.load_state_dict(tensors, assign=True)
    _make_position_ids(module)
    return module.requires_grad_(False).eval()


def _match(path: Path, component: str, expected: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Name in the file -> name in the module, once every name, shape and type was found to fit.

    Raises:
        CheckpointError: A tensor is missing, unexpected, there twice, of another shape or of a type we do not take.
    """
    by_plain_name = {_plain_name(component, name): name for name in expected}
    names: dict[str, str] = {}
    for name_in_file, entry in read_header(path).tensors.items():
        name = by_plain_name.get(_plain_name(component, name_in_file))
        if name is None:
            if HARMLESS.fullmatch(name_in_file):
                continue
            raise CheckpointError(f"{path}: unexpected tensor {name_in_file}", hint=HINT)
        if name in names.values():
            raise CheckpointError(f"{path}: {name_in_file} is there twice, under two names", hint=HINT)
        if not _fits(component, name, entry.shape, expected[name]):
            message = (
                f"{path}: {name_in_file} has shape {list(entry.shape)}; the config asks for {list(expected[name])}"
            )
            raise CheckpointError(message, hint=HINT)
        if entry.dtype not in FLOATS:
            message = f"{path}: {name_in_file} is {entry.dtype}; expected {', '.join(FLOATS)}"
            raise CheckpointError(message, hint="get the checkpoint in fp32 or fp16")
        names[name_in_file] = name
    missing = sorted(expected.keys() - set(names.values()))
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]}", hint=HINT)
    return names


def _plain_name(component: str, name: str) -> str:
    """A tensor's name without what differs between versions of diffusers and transformers."""
    if component == "text_encoder":
        return name.removeprefix("text_model.")
    if component == "vae" and ".attentions." in name:
        *path, part, kind = name.split(".")
        return ".".join([*path, OLD_ATTENTION.get(part, part), kind])
    return name


def _fits(component: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal shapes; a linear layer of the VAE's attention may also be a 1x1 convolution, as in older files."""
    as_convolution = component == "vae" and ".attentions." in name and found == (*expected, 1, 1)
    return found == expected or as_convolution


def _check_finite(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Refuse NaN and Inf.

    Raises:
        CheckpointError: With the tensor's name and how many there are.
    """
    if bool(torch.isfinite(tensor).all()):
        return
    counts = {"NaN": int(torch.isnan(tensor).sum()), "Inf": int(torch.isinf(tensor).sum())}
    found = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    raise CheckpointError(f"{name} has {found} ({path})", hint="the weights are damaged; download or train them again")


def _make_position_ids(module: torch.nn.Module) -> None:
    """Make CLIP's position numbers, which no file holds and which were built without memory."""
    for part in module.modules():
        ids = getattr(part, "position_ids", None)
        if isinstance(ids, torch.Tensor) and ids.is_meta:
            part.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
