"""The demo checkpoint: the trained one that ships with the package, or until it does, one with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdrt.checkpoint.clip_vocabulary import SD_V1, write_clip_tokenizer
from sdrt.errors import BackendUnavailableError
from sdrt.files import canonical_json, folder_published_as

SHIPPED = SD_V1.parent / "demo-checkpoint"


def demo_folder(cache: Path) -> Path:
    """The folder of the demo checkpoint.

    Args:
        cache: Where one with random weights is made when none ships.

    Raises:
        BackendUnavailableError: None ships, and torch is not there to make one.
        ResourceError: The cache cannot be written.
    """
    return SHIPPED if (SHIPPED / "model_index.json").exists() else random_demo(cache / "random-demo")


# What follows stands in for the trained demo checkpoint and goes when that ships.

COARSE_ATTENTION = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
CHANGES: dict[str, dict[str, Any]] = {
    "unet": {
        **COARSE_ATTENTION,
        "block_out_channels": [32, 64, 128, 128],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 64,
    },
    "vae": {"block_out_channels": [16, 16, 32, 32], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 64,
    },
}
NOISE_GAIN, PICTURE_GAIN = 5.0, 1.5  # on the last convolutions: predicted noise of deviation 1, pictures within -1..1


def random_demo(folder: Path) -> Path:
    """A small checkpoint with seeded random weights, made once.

    Raises:
        BackendUnavailableError: torch, diffusers or transformers is not installed.
        ResourceError: The folder cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from safetensors.torch import save_file
        from transformers import CLIPTextConfig, CLIPTextModel
    except ModuleNotFoundError as error:
        hint = "pip install 'sdrt[export]'"
        raise BackendUnavailableError(f"the demo checkpoint needs {error.name} to be made", hint=hint) from error
    configs = {name: {**_v1(f"{name}/config.json"), **changes} for name, changes in CHANGES.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(dict(configs["unet"]))
        vae = AutoencoderKL.from_config(dict(configs["vae"]))
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    unet.conv_out.weight.data *= NOISE_GAIN
    vae.decoder.conv_out.weight.data *= PICTURE_GAIN
    with folder_published_as(folder) as part:
        write_clip_tokenizer(part / "tokenizer")
        (part / "model_index.json").write_bytes(canonical_json(_v1("model_index.json")))
        (part / "scheduler").mkdir()
        scheduler = _v1("scheduler/scheduler_config.json")
        (part / "scheduler" / "scheduler_config.json").write_bytes(canonical_json(scheduler))
        modules = (("unet", unet, "diffusion_pytorch_model"), ("vae", vae, "diffusion_pytorch_model"))
        for name, module, stem in (*modules, ("text_encoder", text_encoder, "model")):
            (part / name).mkdir()
            (part / name / "config.json").write_bytes(canonical_json(configs[name]))
            save_file(module.state_dict(), part / name / f"{stem}.safetensors", metadata={"format": "pt"})
    return folder


def _v1(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((SD_V1 / name).read_bytes())
    return config
