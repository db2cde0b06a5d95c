"""A checkpoint's networks as torch modules; the only module of `sdrt.checkpoint` that imports torch.

Weights are read here rather than by diffusers' and transformers' loaders, so that the name and shape of every tensor
are compared with the network, NaN and Inf are found, and nothing is downloaded, cached or printed.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
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
from sdrt.checkpoint.config_fields import deciding
from sdrt.checkpoint.configs import LATENT_CHANNELS, LATENT_SIZE, VAE_LEVELS
from sdrt.checkpoint.weight_file import CONVERTED, FLOATS
from sdrt.errors import CheckpointError
from sdrt.files import utf8_path

Module = TypeVar("Module", bound=torch.nn.Module)

# Exceptions that the libraries raise on invalid configs.
BAD_CONFIG = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
HINT = "the weights do not belong to this config; download or save the checkpoint again"
SURPLUS_HINT = "give the config.json that was saved with these weights, or save the weights again without the tensor"
QUANTISED_HINT = "give the checkpoint in fp32, fp16 or bf16"
# Names of the attention's layers in autoencoders saved by diffusers before 0.15, such as v1.4's.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_text_encoder(checkpoint: Checkpoint) -> CLIPTextModel:
    """Load the text encoder in eval mode, without gradients.

    It maps input_ids int64 [n, tokens] to last_hidden_state float32 [n, tokens, hidden_size].

    Raises:
        CheckpointError: The weights do not fit the config, have an unsupported dtype, or hold NaN or Inf.
    """
    config = deciding("text_encoder", checkpoint.text_encoder)
    tokens = checkpoint.text_encoder["max_position_embeddings"]

    def run(module: CLIPTextModel) -> None:
        found = module(torch.zeros(1, tokens, dtype=torch.int64)).last_hidden_state
        _check_shape(found, (1, tokens, config["hidden_size"]))

    module = _build("text_encoder", checkpoint, lambda: CLIPTextModel(CLIPTextConfig(**config)), run)
    return _load(module, checkpoint, "text_encoder")


def load_unet(checkpoint: Checkpoint) -> UNet2DConditionModel:
    """Load the UNet in eval mode, without gradients.

    It maps sample float32 [n, 4, 64, 64], timestep float32 [n] and encoder_hidden_states float32 [n, tokens,
    hidden_size] to sample float32 [n, 4, 64, 64].

    Raises:
        CheckpointError: As in `load_text_encoder`.
    """
    config = deciding("unet", checkpoint.unet)

    def run(module: UNet2DConditionModel) -> None:
        states = torch.zeros(1, checkpoint.text_encoder["max_position_embeddings"], config["cross_attention_dim"])
        sample = torch.zeros(1, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        _check_shape(module(sample, torch.zeros(1), states).sample, tuple(sample.shape))

    module = _build("unet", checkpoint, lambda: UNet2DConditionModel.from_config(config), run)
    return _load(module, checkpoint, "unet")


def load_vae(checkpoint: Checkpoint) -> AutoencoderKL:
    """Load the autoencoder in eval mode, without gradients.

    It encodes pictures float32 [n, 3, h, w] and decodes unscaled latents float32 [n, 4, h/8, w/8].

    Raises:
        CheckpointError: As in `load_text_encoder`.
    """
    config = deciding("vae", checkpoint.vae)

    def run(module: AutoencoderKL) -> None:
        size = LATENT_SIZE * 2 ** (VAE_LEVELS - 1)
        picture = torch.zeros(1, 3, size, size)
        latents = module.encode(picture).latent_dist.mean
        _check_shape(latents, (1, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
        _check_shape(module.decode(latents).sample, tuple(picture.shape))

    module = _build("vae", checkpoint, lambda: AutoencoderKL.from_config(config), run)
    return _load(module, checkpoint, "vae")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log messages of torch, diffusers and transformers."""
    before = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity(logging.ERROR)
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers.logging.set_verbosity(before[0])
        transformers.logging.set_verbosity(before[1])


def _build(component: str, checkpoint: Checkpoint, make: Callable[[], Module], run: Callable[[Module], None]) -> Module:
    """Build a module on the meta device, without memory for weights, and run it once there.

    Args:
        component: Name of the component.
        checkpoint: The checkpoint.
        make: Builds the module.
        run: Runs the module on inputs of v1's shapes and checks the shapes of its outputs.

    Raises:
        CheckpointError: The config does not describe a network that can be built and run on v1's shapes.
    """
    doing = "built"
    try:
        with _quiet(), torch.device("meta"), torch.no_grad():
            module = make().eval()
            doing = "run"
            run(module)
            return module
    except BAD_CONFIG as error:
        path = checkpoint.path / component / "config.json"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        hint = "download or save the checkpoint again"
        raise CheckpointError(f"{path} does not describe a network that can be {doing}: {reason}", hint=hint) from error


def _check_shape(found: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor has the shape of Stable Diffusion v1's."""
    if tuple(found.shape) != expected:
        raise ValueError(f"its output has shape {list(found.shape)}; Stable Diffusion v1's has {list(expected)}")


def _load(module: Module, checkpoint: Checkpoint, component: str) -> Module:
    """Fill a module with the checkpoint's weights as float32; float32 tensors of the file are mapped, not copied."""
    path = checkpoint.weights(component)
    expected = module.state_dict()
    names = _match(checkpoint, component, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    tensors = {}
    with utf8_path(path) as spelled, safe_open(spelled, framework="pt") as file:
        for name_in_file, name in names.items():
            tensor = file.get_tensor(name_in_file).to(torch.float32).reshape(expected[name].shape)
            _check_finite(f"{component}/{name_in_file}", tensor, path)
            tensors[name] = tensor
    module.load_state_dict(tensors, assign=True)
    _make_position_ids(module)
    return module.requires_grad_(False).eval()


def _match(checkpoint: Checkpoint, component: str, expected: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the name in the module by name in the file, after comparing all names, shapes and dtypes.

    Raises:
        CheckpointError: A tensor is missing, unexpected, duplicate, of another shape or of an unsupported dtype.
    """
    file = checkpoint.weight_files[component]
    path, unexpected = file.path, []
    by_plain_name = {_plain_name(component, name): name for name in expected}
    names: dict[str, str] = {}
    for file_name, tensor in file.tensors.items():
        entry, name_in_file = tensor.entry, tensor.name_in_file
        name = by_plain_name.get(_plain_name(component, file_name))
        if name is None:
            unexpected.append(name_in_file)
            continue
        if name in names.values():
            raise CheckpointError(f"{path}: {name_in_file} is there twice, under two names", hint=HINT)
        if not _fits(component, name, entry.shape, expected[name]):
            message = (
                f"{path}: {name_in_file} has shape {list(entry.shape)}; the config requires {list(expected[name])}"
            )
            raise CheckpointError(message, hint=HINT)
        if entry.dtype not in FLOATS and entry.dtype not in CONVERTED:
            message = f"{path}: {name_in_file} is {entry.dtype}; expected {', '.join((*FLOATS, *CONVERTED))}"
            raise CheckpointError(message, hint=QUANTISED_HINT)
        names[name_in_file] = name
    missing = sorted(expected.keys() - set(names.values()))
    if unexpected:
        message = f"{path}: unexpected tensor {unexpected[0]}, for which {component}/config.json has no layer"
        raise CheckpointError(message, hint=HINT if missing else SURPLUS_HINT)
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]}", hint=HINT)
    return names


def _plain_name(component: str, name: str) -> str:
    """Return a tensor's name without differences between versions of diffusers and transformers."""
    if component == "text_encoder":
        return name.removeprefix("text_model.")
    if component == "vae" and ".attentions." in name:
        *path, part, kind = name.split(".")
        return ".".join([*path, OLD_ATTENTION.get(part, part), kind])
    return name


def _fits(component: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes match; older files hold the VAE's attention as 1x1 convolutions, not linear layers."""
    as_convolution = component == "vae" and ".attentions." in name and found == (*expected, 1, 1)
    return found == expected or as_convolution


def _check_finite(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Raise CheckpointError, which names and counts them, if a tensor holds NaN or Inf."""
    if bool(torch.isfinite(tensor).all()):
        return
    counts = {"NaN": int(torch.isnan(tensor).sum()), "Inf": int(torch.isinf(tensor).sum())}
    found = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    raise CheckpointError(f"{name} has {found} ({path})", hint="the weights are damaged; download or train them again")


def _make_position_ids(module: torch.nn.Module) -> None:
    """Create CLIP's position ids, which no file holds and which were built on the meta device."""
    for part in module.modules():
        ids = getattr(part, "position_ids", None)
        if isinstance(ids, torch.Tensor) and ids.is_meta:
            part.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
