"""The original (CompVis latent-diffusion) layout of a checkpoint's tensors, for tests.

Written from the structure of the original modules, from network to file; `sdrt.checkpoint.ldm_names` maps file to
network. Both are compared with diffusers' own conversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdrt.checkpoint.weights import STEMS, find_weights

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Map modules of a UNet2DConditionModel to the original UNet's, down to resnets, attentions and samplers."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    modules = dict(UNET_ENDS)
    for level in range(levels):
        for layer in range(layers):
            block = f"input_blocks.{1 + level * (layers + 1) + layer}"
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        place = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"{block}.{place}.conv"
    return modules


def vae_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Map modules of an AutoencoderKL to modules of the original autoencoder."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        modules |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
        modules |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in (0, 1)}
        modules |= {f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1"}
    for level in range(levels):
        for layer in range(layers + 1):
            modules[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
            modules[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{levels - 1 - level}.block.{layer}"
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{levels - 1 - level}.upsample.conv"
    return modules


def original_name(component: str, name: str, config: Mapping[str, Any]) -> str:
    """Return the name of one tensor in the original layout, with its prefix."""
    if component == "text_encoder":
        return f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"
    modules = unet_modules(config) if component == "unet" else vae_modules(config)
    module = next(module for module in modules if name.startswith(f"{module}."))
    inner = name.removeprefix(f"{module}.")
    if component == "unet":
        parts = RESNET if ".resnets." in module else {}
        prefix = "model.diffusion_model"
    else:
        parts = VAE_ATTENTION if ".attentions." in module else {"conv_shortcut": "nin_shortcut"}
        prefix = "first_stage_model"
    part, _, kind = inner.rpartition(".")
    return ".".join(filter(None, (prefix, modules[module], parts.get(part, part), kind)))


def original_tensors(component: str, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors under their original names; the VAE's attention as 1x1 convolutions."""
    renamed = {}
    for name, tensor in tensors.items():
        is_linear = component == "vae" and ".attentions." in name and len(tensor.shape) == 2
        renamed[original_name(component, name, config)] = tensor[:, :, None, None] if is_linear else tensor
    return renamed


def as_single_file(folder: Path, out: Path, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """Write the folder's three networks to one file, under the original names."""
    tensors = dict(extra or {})
    for component in STEMS:
        config = json.loads((folder / component / "config.json").read_bytes())
        tensors |= original_tensors(component, load_file(find_weights(folder, component)), config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)
    return out
