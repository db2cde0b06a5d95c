"""Tensor names: from the original layout (CompVis latent-diffusion) to the diffusers layout.

Tests compare this with diffusers' own conversion (diffusers/loaders/single_file_utils.py). Names that the original
layout does not have are returned unchanged, so that unknown tensors are found when the names are compared with the
network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Prefixes of tensor names by component; the first is the original layout's.
PREFIXES = {
    "text_encoder": ("cond_stage_model.transformer.",),
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
}
RESNET = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
UNET_ENDS = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
VAE_PARTS = {
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.": ".mid_block.attentions.0.",
    ".nin_shortcut.": ".conv_shortcut.",
    ".norm_out.": ".conv_norm_out.",
    ".attentions.0.norm.": ".attentions.0.group_norm.",
    ".attentions.0.q.": ".attentions.0.to_q.",
    ".attentions.0.k.": ".attentions.0.to_k.",
    ".attentions.0.v.": ".attentions.0.to_v.",
    ".attentions.0.proj_out.": ".attentions.0.to_out.0.",
}


def split_name(name: str) -> tuple[str, str]:
    """Return the component of a single file's tensor ("" for none), and the name without the component's prefix."""
    for component, prefixes in PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                return component, name.removeprefix(prefix)
    return "", name


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the name in UNet2DConditionModel of a tensor of the original UNet, both without prefix."""
    for old, new in UNET_ENDS.items():
        if name.startswith(old):
            return _resnet_name(new + name.removeprefix(old))
    block = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
    if block is None:
        return name
    index, part, rest = int(block[2]), int(block[3]), block[4]
    renamed = _down_block if block[1] == "input" else _up_block
    return _resnet_name(renamed(index, part, rest, config["layers_per_block"]))


def _down_block(index: int, part: int, rest: str, layers: int) -> str:
    """Rename ``input_blocks.1`` and later: each level has layers (resnet, attention), then a downsampler."""
    level, layer = divmod(index - 1, layers + 1)
    if layer == layers:
        return f"down_blocks.{level}.downsamplers.0.{rest.replace('op.', 'conv.', 1)}"
    return f"down_blocks.{level}.{('resnets', 'attentions')[part > 0]}.{layer}.{rest}"


def _up_block(index: int, part: int, rest: str, layers: int) -> str:
    """Rename ``output_blocks``: each level has one layer more; its upsampler follows the parts of the last layer."""
    level, layer = divmod(index, layers + 1)
    if part > 0 and rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return f"up_blocks.{level}.{('resnets', 'attentions')[part > 0]}.{layer}.{rest}"


def _resnet_name(name: str) -> str:
    for old, new in RESNET.items():
        if f".{old}" in name:
            return name.replace(old, new, 1)
    return name


def vae_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the name in AutoencoderKL of a tensor of the original autoencoder, both without prefix."""
    last = len(config["block_out_channels"]) - 1
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    for old, new in (("block.", "resnets."), ("upsample.", "upsamplers.0.")):
        up = re.match(rf"decoder\.up\.(\d+)\.{re.escape(old)}", name)
        if up:
            name = f"decoder.up_blocks.{last - int(up[1])}.{new}{name[up.end() :]}"
    for old, new in VAE_PARTS.items():
        name = name.replace(old, new, 1)
    return name


def text_encoder_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the name in CLIPTextModel, with v1's prefix ``text_model.``, which some merging tools leave out."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


NAMES = {"text_encoder": text_encoder_name, "unet": unet_name, "vae": vae_name}
