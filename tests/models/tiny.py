"""Small Stable Diffusion v1 checkpoints with seeded random weights, made in about a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sdrt.checkpoint.clip_vocabulary import SD_V1, write_clip_tokenizer

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]


class Changes(TypedDict, total=False):
    """Changes of v1.4's configs, as `tiny_checkpoint` takes them."""

    unet: Config
    vae: Config
    text_encoder: Config
    scheduler: Config


# Attention below the first level only: at 64x64 it would take nine tenths of a step. One odd checkpoint has it there.
COARSE_ATTENTION: Config = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
UNET: Config = {
    **COARSE_ATTENTION,
    "block_out_channels": [32, 32, 64, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
VAE: Config = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
TEXT_ENCODER: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}

# Gains on the last convolutions, so that predicted noise has a standard deviation near 1 and pictures span -1..1:
# with the default initialisation both would be near 0 and every picture grey.
NOISE_GAIN = 5.0
PICTURE_GAIN = 1.5


def tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    unet: Config | None = None,
    vae: Config | None = None,
    text_encoder: Config | None = None,
    scheduler: Config | None = None,
) -> Path:
    """Write a small checkpoint in the diffusers layout; the mappings change values of its configs.

    It has SD v1's structure (four levels with cross-attention, CLIP's whole vocabulary, 77 tokens, 64x64x4 latents,
    pictures of 512x512) and the names that the v1.4 files have.

    Args:
        folder: Folder to write; created if missing.
        seed: Equal seeds and changes give equal weights.
        unet: Values of unet/config.json.
        vae: Values of vae/config.json.
        text_encoder: Values of text_encoder/config.json.
        scheduler: Values of scheduler/scheduler_config.json.

    Returns:
        The folder.
    """
    configs = {
        "unet": {**v1_config("unet"), **UNET, **(unet or {})},
        "vae": {**v1_config("vae"), **VAE, **(vae or {})},
        "text_encoder": {**v1_config("text_encoder"), **TEXT_ENCODER, **(text_encoder or {})},
    }
    write_configs(folder, configs, scheduler or {})
    write_clip_tokenizer(folder / "tokenizer")
    for component, weights in _random_weights(configs, seed).items():
        save_weights(folder / component, component, weights)
    return folder


def odd_checkpoints() -> dict[str, Changes]:
    """Return changes for `tiny_checkpoint` by name: checkpoints with none of v1.4's numbers."""
    return {
        "heads-by-level": {
            "unet": {
                "block_out_channels": [24, 36, 48, 72],
                "norm_num_groups": 6,
                "attention_head_dim": [1, 3, 4, 6],
                "down_block_types": [
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                    "DownBlock2D",
                ],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
                "cross_attention_dim": 48,
            },
            "vae": {"block_out_channels": [6, 12, 12, 18], "norm_num_groups": 3, "scaling_factor": 0.3},
            "text_encoder": {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 1},
        },
        "linear-v-prediction": {
            "unet": {
                "block_out_channels": [32, 64, 64, 96],
                "norm_num_groups": 16,
                "attention_head_dim": [2, 4, 4, 8],
                "cross_attention_dim": 96,
                "use_linear_projection": True,
            },
            "vae": {"norm_num_groups": 8, "scaling_factor": 0.13025},
            "text_encoder": {"hidden_size": 96, "num_attention_heads": 6, "hidden_act": "gelu"},
            "scheduler": {"prediction_type": "v_prediction", "beta_start": 0.001, "beta_end": 0.014},
        },
        "wide-two-layers": {
            "unet": {
                "block_out_channels": [16, 32, 48, 80],
                "layers_per_block": 2,
                "norm_num_groups": 2,
                "attention_head_dim": 4,
                "upcast_attention": True,
            },
            "vae": {"block_out_channels": [4, 8, 8, 20], "norm_num_groups": 1, "layers_per_block": 2},
            "scheduler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear"},
        },
    }


def write_configs(folder: Path, configs: Mapping[str, Config], scheduler: Config) -> None:
    """Write model_index.json, each component's config.json and the scheduler's config: v1.4's with the changes."""
    scheduler_config = {**json.loads((SD_V1 / "scheduler" / "scheduler_config.json").read_bytes()), **scheduler}
    index = json.loads((SD_V1 / "model_index.json").read_bytes())
    index["scheduler"] = ["diffusers", scheduler_config["_class_name"]]
    files = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler_config}
    files |= {f"{component}/config.json": config for component, config in configs.items()}
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")


def save_weights(folder: Path, component: str, weights: Mapping[str, torch.Tensor], variant: str = "") -> Path:
    """Write one component's weights under the file name that diffusers gives it."""
    from safetensors.torch import save_file

    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    path = folder / f"{stem}{variant}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    return path


def v1_config(component: str) -> dict[str, Any]:
    """Return config.json of a component of v1.4."""
    config: dict[str, Any] = json.loads((SD_V1 / component / "config.json").read_bytes())
    return config


def _random_weights(configs: Mapping[str, Config], seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Draw weights of the three networks by component and tensor name, all float32."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(dict(configs["unet"]))
        vae = AutoencoderKL.from_config(dict(configs["vae"]))
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    unet.conv_out.weight.data *= NOISE_GAIN
    vae.decoder.conv_out.weight.data *= PICTURE_GAIN
    named = text_encoder.state_dict()
    return {
        "unet": unet.state_dict(),
        "vae": vae.state_dict(),
        "text_encoder": {f"text_model.{name.removeprefix('text_model.')}": named[name] for name in named},
    }
