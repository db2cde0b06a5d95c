"""Configs of a checkpoint in the diffusers layout, checked to be Stable Diffusion v1's."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdrt.checkpoint.config_fields import DECIDING, completed, is_json
from sdrt.checkpoint.misplaced import folder_hint
from sdrt.errors import CheckpointError
from sdrt.files import unreadable
from sdrt.limits import DEFAULT_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE
from sdrt.sampling.noise_config import OTHER_SCHEDULER_HINT, WITHOUT_BETAS, NoiseConfig

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
shorten = _SHORT.repr  # a value's repr, shortened for a message
CONFIG_LIMIT_BYTES = 1 << 20
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any class: only betas and prediction type are used
}
LATENT_SIZE = 64
LATENT_CHANNELS = 4
VAE_LEVELS = 4  # each level but the last halves the size: pictures are 2**3 = 8 times the latents
OTHER_CONDITIONING = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
#: Most layers by field, and the largest number and list of any field. v1 has 2 layers in a block, 12 in the text
#: encoder and a vocabulary of 49,408; building millions of layers would fill the memory.
MOST_PARTS = {"layers_per_block": 16, "transformer_layers_per_block": 16, "num_hidden_layers": 128}
MOST_OF_ANY = 1_000_000
LONGEST_LIST = 64
COUNTS_OF_TEXT_ENCODER = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
LATENT_STATISTICS = ("latents_mean", "latents_std", "shift_factor")
#: The scheduler's fields that sdrt.sampling.noise_config reads.
NOISE_FIELDS = frozenset(field.alias or name for name, field in NoiseConfig.model_fields.items())
PREDICTION_TYPES = ("epsilon", "v_prediction")
#: Optional file beside model_index.json: settings that the checkpoint recommends, with names of transformers'
#: GenerationConfig. diffusers ignores it.
GENERATION_CONFIG = "generation_config.json"
V1_HINT = "give a Stable Diffusion v1 checkpoint (v1.1 to v1.5 or a fine-tune of one)"


def read_json(path: Path, limit_bytes: int = CONFIG_LIMIT_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of limited size.

    Raises:
        CheckpointError: It is missing, unreadable, too large or not a JSON object.
    """
    hint = "download or save the checkpoint again"
    try:
        if path.stat().st_size > limit_bytes:
            raise CheckpointError(f"{path} is larger than {limit_bytes >> 20} MiB", hint=hint)
        raw = path.read_bytes()
        value = json.loads(raw)
        if b"\\ud" in raw.lower():
            # A lone surrogate is valid in JSON but not in UTF-8: it could be neither hashed nor written.
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", hint=hint) from error
    except OSError as error:
        raise unreadable(path, error, CheckpointError, hint=hint) from error
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path} holds a lone surrogate, which UTF-8 cannot encode", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object", hint=hint)
    return value


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read and check the configs of text_encoder, unet, vae and scheduler, and model_index.json.

    Raises:
        CheckpointError: One is missing, malformed or another model's.
    """
    check_index(folder)
    text_encoder = read_text_encoder(folder)
    unet = read_unet(folder, text_encoder["hidden_size"])
    return {"text_encoder": text_encoder, "unet": unet, "vae": read_vae(folder), "scheduler": read_scheduler(folder)}


def check_index(folder: Path) -> None:
    """Check model_index.json: the pipeline's class, and the class of each component that sdrt uses.

    Other components (safety_checker, feature_extractor, ...) are ignored.

    Raises:
        CheckpointError: It is missing, names another kind of pipeline, or a component is missing or of another class.
    """
    path = folder / "model_index.json"
    if not path.exists():
        raise CheckpointError(f"{path} is missing", hint=folder_hint(folder))
    index = read_json(path)
    _one_of(path, "_class_name", index.get("_class_name"), PIPELINES)
    for component, classes in CLASSES.items():
        entry = index.get(component)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if named is None or not (folder / component).is_dir():
            raise CheckpointError(f"{folder} has no {component}", hint="download or save the whole checkpoint")
        if classes:
            _one_of(path, component, named, classes)


def read_text_encoder(folder: Path) -> dict[str, Any]:
    """Read text_encoder/config.json of a CLIP text model, or the ``text_config`` of a whole CLIP model's.

    Raises:
        CheckpointError: It is malformed or another model's.
    """
    path = folder / "text_encoder" / "config.json"
    config = read_json(path)
    if "text_config" in config:
        config = config["text_config"]
        if not isinstance(config, dict):
            message = f"{path}: text_config is {shorten(config)}; expected the text encoder's config"
            raise CheckpointError(message, hint=V1_HINT)
    if config.get("model_type") is not None:
        _one_of(path, "model_type", config["model_type"], ("clip_text_model", "clip"))
    config = _network(path, "text_encoder", config)
    for field in COUNTS_OF_TEXT_ENCODER:
        _count(path, field, config[field])
    if config["hidden_size"] % config["num_attention_heads"]:
        message = f"{path}: hidden_size is {config['hidden_size']}; expected a multiple of num_attention_heads"
        raise CheckpointError(f"{message}, {config['num_attention_heads']}", hint=V1_HINT)
    return config


def read_unet(folder: Path, hidden_size: int) -> dict[str, Any]:
    """Read unet/config.json of a text-to-image UNet on 4x64x64 latents; set ``sample_size``.

    Args:
        folder: The checkpoint.
        hidden_size: Width of the text encoder, which cross_attention_dim must equal.

    Raises:
        CheckpointError: It is malformed, or the UNet takes other inputs than Stable Diffusion v1's.
    """
    path = folder / "unet" / "config.json"
    config = _network(path, "unet", read_json(path))
    if config.get("_class_name") is not None:
        _one_of(path, "_class_name", config["_class_name"], CLASSES["unet"])
    in_channels = config.get("in_channels", LATENT_CHANNELS)
    if in_channels in (8, 9):
        kind = {8: "an image-editing (pix2pix)", 9: "an inpainting"}[in_channels]
        raise CheckpointError(f"{path}: in_channels is {in_channels}: {kind} UNet; expected 4", hint=V1_HINT)
    _one_of(path, "in_channels", in_channels, (LATENT_CHANNELS,))
    _one_of(path, "out_channels", config.get("out_channels", LATENT_CHANNELS), (LATENT_CHANNELS,))
    config["sample_size"] = _sample_size(config)
    _one_of(path, "sample_size", config["sample_size"], (LATENT_SIZE, [LATENT_SIZE, LATENT_SIZE]))
    _absent(path, config, OTHER_CONDITIONING)
    _one_of(path, "attention_type", config.get("attention_type", "default"), ("default",))
    width = config["cross_attention_dim"]
    levels = config["down_block_types"]
    if isinstance(width, list) and isinstance(levels, list) and width == [hidden_size] * len(levels):
        width = config["cross_attention_dim"] = hidden_size
    if type(width) is not int or width != hidden_size:
        message = f"{path}: cross_attention_dim is {shorten(width)}; the text encoder's hidden_size is {hidden_size}"
        raise CheckpointError(message, hint="unet and text_encoder must come from one checkpoint")
    return config


def read_vae(folder: Path) -> dict[str, Any]:
    """Read vae/config.json of an autoencoder with 4 latent channels and factor 8; set ``scaling_factor``.

    Raises:
        CheckpointError: It is malformed or another autoencoder's.
    """
    path = folder / "vae" / "config.json"
    config = _network(path, "vae", read_json(path))
    if config.get("_class_name") is not None:
        _one_of(path, "_class_name", config["_class_name"], CLASSES["vae"])
    _one_of(path, "latent_channels", config.get("latent_channels", LATENT_CHANNELS), (LATENT_CHANNELS,))
    for field in ("in_channels", "out_channels"):
        _one_of(path, field, config.get(field, 3), (3,))
    for field in ("block_out_channels", "down_block_types", "up_block_types"):
        levels = config[field]
        if not isinstance(levels, list) or len(levels) != VAE_LEVELS:
            message = f"{path}: {field} is {shorten(levels)}; expected 4 levels (factor 8)"
            raise CheckpointError(message, hint=V1_HINT)
    _absent(path, config, LATENT_STATISTICS)
    scaling_factor = config["scaling_factor"]  # v1's files predate the field
    if type(scaling_factor) not in (int, float) or not 0 < scaling_factor < math.inf:
        raise CheckpointError(
            f"{path}: scaling_factor is {shorten(scaling_factor)}; expected a number above 0", hint=V1_HINT
        )
    return config


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Read scheduler/scheduler_config.json; set ``prediction_type``.

    Raises:
        CheckpointError: It is malformed, its class has no betas, or its prediction type is neither epsilon nor
            v_prediction.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = {field: value for field, value in read_json(path).items() if field in NOISE_FIELDS or is_json(value)}
    name = config.get("_class_name")
    if isinstance(name, str) and name in WITHOUT_BETAS:
        message = f"{path}: _class_name is {name!r}: a scheduler without betas, hence without LMS's sigmas"
        raise CheckpointError(message, hint=OTHER_SCHEDULER_HINT)
    _one_of(path, "prediction_type", config.setdefault("prediction_type", "epsilon"), PREDICTION_TYPES)
    return config


def read_guidance_scale(folder: Path) -> float:
    """Return the guidance_scale that generation_config.json recommends; 7.5 if it recommends none.

    Raises:
        CheckpointError: The file is malformed, or the number is out of range.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return DEFAULT_GUIDANCE_SCALE
    scale = read_json(path).get("guidance_scale")
    if scale is None:
        return DEFAULT_GUIDANCE_SCALE
    if type(scale) not in (int, float) or not abs(scale) <= MAX_GUIDANCE_SCALE:
        expected = f"a number, -{MAX_GUIDANCE_SCALE:.0f} to {MAX_GUIDANCE_SCALE:.0f}"
        message = f"{path}: guidance_scale is {shorten(scale)}; expected {expected}"
        raise CheckpointError(
            message, hint=f"correct it, or remove the file for the default of {DEFAULT_GUIDANCE_SCALE}"
        )
    return float(scale)


def _sample_size(config: Mapping[str, Any]) -> Any:
    """Return the size of latents; 64, as in diffusers, if a file from before its version 0.9 has less."""
    size = config.get("sample_size")
    version = re.match(r"0\.(\d{1,3})\b", str(config.get("_diffusers_version")))
    is_old = version is not None and int(version[1]) < 9
    return LATENT_SIZE if size is None or (is_old and type(size) is int and size < LATENT_SIZE) else size


def _network(path: Path, component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's config with the libraries' defaults, after checking that its numbers are of limited size.

    Raises:
        CheckpointError: A number or list in a deciding field is too large or not finite.
    """
    whole = completed(component, config)
    for field in sorted(whole.keys() & DECIDING[component]):
        value = whole[field]
        if not is_json(value):
            message = f"{path}: {field} is {shorten(value)[:80]}; expected finite numbers"
            raise CheckpointError(message, hint=V1_HINT)
        most = MOST_PARTS.get(field, MOST_OF_ANY)
        if _largest(value) > most:
            message = f"{path}: {field} is {shorten(value)[:80]}; expected {most} at most, in short lists"
            raise CheckpointError(message, hint=V1_HINT)
    return whole


def _largest(value: Any) -> float:
    """Return the largest number in a JSON value; infinity for lists that are too long or nested too deeply."""
    values = [value]
    for _ in range(3):
        if len(values) > LONGEST_LIST:
            return math.inf
        values = [inner for one in values for inner in (one if isinstance(one, list) else [one])]
    if any(isinstance(one, list) for one in values):
        return math.inf
    return max((abs(one) for one in values if isinstance(one, int | float)), default=0)


def _one_of(path: Path, field: str, found: Any, expected: Iterable[Any]) -> None:
    choices = list(expected)
    if not any(_same(found, choice) for choice in choices):
        names = " or ".join(str(choice) for choice in choices)
        raise CheckpointError(
            f"{path}: {field} is {shorten(found)}; expected {names} (Stable Diffusion v1)", hint=V1_HINT
        )


def _same(found: Any, choice: Any) -> bool:
    """Return whether a value equals a choice in value and type: the libraries treat 1, 1.0 and true differently."""
    if isinstance(choice, list) and isinstance(found, list):
        return len(found) == len(choice) and all(_same(*pair) for pair in zip(found, choice, strict=True))
    return type(found) is type(choice) and bool(found == choice)


def _count(path: Path, field: str, found: Any) -> None:
    if type(found) is not int or found < 1:
        raise CheckpointError(f"{path}: {field} is {shorten(found)}; expected a positive whole number", hint=V1_HINT)


def _absent(path: Path, config: dict[str, Any], fields: Iterable[str]) -> None:
    for field in fields:
        if config.get(field) is not None:
            message = f"{path}: {field} is {shorten(config[field])}; Stable Diffusion v1 has no such conditioning"
            raise CheckpointError(message, hint=V1_HINT)
