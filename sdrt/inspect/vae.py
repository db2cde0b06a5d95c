"""The VAE's encoder and decoder as trees, with the structure of diffusers' AutoencoderKL, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, parent_block
from sdrt.inspect.layers import (
    conv2d_block,
    downsample_block,
    group_norm_block,
    resnet_block,
    upsample_block,
    vae_attention_block,
)


def encoder_tree(config: Mapping[str, Any], latent_size: int) -> Block:
    """Build the tree of the encoder, which maps a picture to the mean and log-variance of its latents.

    Args:
        config: Contents of vae/config.json, as in `Checkpoint.vae`.
        latent_size: Height and width of the latents.

    Raises:
        CheckpointError: The config describes a structure that Stable Diffusion v1 does not have.
    """
    _check(config)
    channels, latents = config["block_out_channels"], 2 * config.get("latent_channels", 4)
    size = latent_size * 2 ** (len(channels) - 1)
    parts = [conv2d_block("conv_in", (config.get("in_channels", 3), size, size), channels[0])]
    for level, width in enumerate(channels):
        blocks = _resnets(f"down_blocks.{level}", parts[-1].output, width, config.get("layers_per_block", 1))
        if level < len(channels) - 1:
            blocks.append(downsample_block(f"down_blocks.{level}.downsamplers.0", blocks[-1].output))
        parts.append(parent_block(f"down_blocks.{level}", "DownEncoderBlock2D", blocks))
    parts.append(_middle(parts[-1].output, config))
    parts.append(group_norm_block("conv_norm_out", parts[-1].output))
    parts.append(conv2d_block("conv_out", parts[-1].output, latents))
    if config.get("use_quant_conv", True):
        parts.append(conv2d_block("quant_conv", parts[-1].output, latents, kernel=1))
    return parent_block("", "Encoder", parts)


def decoder_tree(config: Mapping[str, Any], latent_size: int) -> Block:
    """Build the tree of the decoder, which maps unscaled latents to a picture.

    Args:
        config: Contents of vae/config.json, as in `Checkpoint.vae`.
        latent_size: Height and width of the latents.

    Raises:
        CheckpointError: The config describes a structure that Stable Diffusion v1 does not have.
    """
    _check(config)
    channels = config["block_out_channels"][::-1]
    latents = (config.get("latent_channels", 4), latent_size, latent_size)
    parts = []
    if config.get("use_post_quant_conv", True):
        parts.append(conv2d_block("post_quant_conv", latents, latents[0], kernel=1))
    parts.append(conv2d_block("conv_in", latents, channels[0]))
    parts.append(_middle(parts[-1].output, config))
    for number, width in enumerate(channels):
        blocks = _resnets(f"up_blocks.{number}", parts[-1].output, width, config.get("layers_per_block", 1) + 1)
        if number < len(channels) - 1:
            blocks.append(upsample_block(f"up_blocks.{number}.upsamplers.0", blocks[-1].output))
        parts.append(parent_block(f"up_blocks.{number}", "UpDecoderBlock2D", blocks))
    parts.append(group_norm_block("conv_norm_out", parts[-1].output))
    parts.append(conv2d_block("conv_out", parts[-1].output, config.get("out_channels", 3)))
    return parent_block("", "Decoder", parts)


def _resnets(name: str, input_shape: Shape, channels: int, count: int) -> list[Block]:
    """Build consecutive ResNet blocks."""
    blocks: list[Block] = []
    for number in range(count):
        before = blocks[-1].output if blocks else input_shape
        blocks.append(resnet_block(f"{name}.resnets.{number}", before, channels, time_width=None))
    return blocks


def _middle(input_shape: Shape, config: Mapping[str, Any]) -> Block:
    """Build the middle: attention, if the config has it, between two ResNet blocks."""
    parts = [resnet_block("mid_block.resnets.0", input_shape, input_shape[0], time_width=None)]
    if config.get("mid_block_add_attention", True):
        parts.append(vae_attention_block("mid_block.attentions.0", input_shape))
    parts.append(resnet_block("mid_block.resnets.1", input_shape, input_shape[0], time_width=None))
    return parent_block("mid_block", "UNetMidBlock2D", parts)


def _check(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the config describes a structure that this module can build."""
    hint = "give a Stable Diffusion v1 checkpoint; export it and inspect the bundle"
    levels = config["block_out_channels"]
    if not all(type(count) is int and count > 0 for count in levels):
        raise CheckpointError(
            f"vae/config.json: block_out_channels is {str(levels)[:80]}; expected positive integers", hint=hint
        )
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name) != [kind] * len(levels):
            found = str(config.get(name))[:80]
            raise CheckpointError(f"vae/config.json: {name} is {found}; expected {kind} at each level", hint=hint)
    layers = config.get("layers_per_block", 1)
    if type(layers) is not int or not 0 < layers <= 64:
        raise CheckpointError(f"vae/config.json: layers_per_block is {str(layers)[:80]}; expected 1 to 64", hint=hint)
