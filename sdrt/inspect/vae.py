"""The VAE's halves as trees, from its config alone: what diffusers' AutoencoderKL builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, holding
from sdrt.inspect.layers import convolution, downsampler, group_norm, pixel_attention, resnet, upsampler


def encoder_tree(config: Mapping[str, Any], latent_size: int) -> Block:
    """The encoder: a picture becomes the mean and log-variance of its latents.

    Args:
        config: vae/config.json, as a `Checkpoint` holds it.
        latent_size: Height and width of latents.

    Raises:
        CheckpointError: The config has a structure that Stable Diffusion v1 has not.
    """
    _check(config)
    channels, latents = config["block_out_channels"], 2 * config.get("latent_channels", 4)
    size = latent_size * 2 ** (len(channels) - 1)
    parts = [convolution("conv_in", (config.get("in_channels", 3), size, size), channels[0])]
    for level, width in enumerate(channels):
        blocks = _resnets(f"down_blocks.{level}", parts[-1].output, width, config.get("layers_per_block", 1))
        if level < len(channels) - 1:
            blocks.append(downsampler(f"down_blocks.{level}.downsamplers.0", blocks[-1].output))
        parts.append(holding(f"down_blocks.{level}", "DownEncoderBlock2D", blocks))
    parts.append(_middle(parts[-1].output, config))
    parts.append(group_norm("conv_norm_out", parts[-1].output))
    parts.append(convolution("conv_out", parts[-1].output, latents))
    if config.get("use_quant_conv", True):
        parts.append(convolution("quant_conv", parts[-1].output, latents, kernel=1))
    return holding("", "Encoder", parts)


def decoder_tree(config: Mapping[str, Any], latent_size: int) -> Block:
    """The decoder: latents, before scaling, become a picture.

    Args:
        config: vae/config.json, as a `Checkpoint` holds it.
        latent_size: Height and width of latents.

    Raises:
        CheckpointError: The config has a structure that Stable Diffusion v1 has not.
    """
    _check(config)
    channels = config["block_out_channels"][::-1]
    latents = (config.get("latent_channels", 4), latent_size, latent_size)
    parts = []
    if config.get("use_post_quant_conv", True):
        parts.append(convolution("post_quant_conv", latents, latents[0], kernel=1))
    parts.append(convolution("conv_in", latents, channels[0]))
    parts.append(_middle(parts[-1].output, config))
    for number, width in enumerate(channels):
        blocks = _resnets(f"up_blocks.{number}", parts[-1].output, width, config.get("layers_per_block", 1) + 1)
        if number < len(channels) - 1:
            blocks.append(upsampler(f"up_blocks.{number}.upsamplers.0", blocks[-1].output))
        parts.append(holding(f"up_blocks.{number}", "UpDecoderBlock2D", blocks))
    parts.append(group_norm("conv_norm_out", parts[-1].output))
    parts.append(convolution("conv_out", parts[-1].output, config.get("out_channels", 3)))
    return holding("", "Decoder", parts)


def _resnets(name: str, taken: Shape, channels: int, count: int) -> list[Block]:
    """ResNet blocks one after the other."""
    blocks: list[Block] = []
    for number in range(count):
        before = blocks[-1].output if blocks else taken
        blocks.append(resnet(f"{name}.resnets.{number}", before, channels, time_width=None))
    return blocks


def _middle(taken: Shape, config: Mapping[str, Any]) -> Block:
    """The middle: attention, where the config has it, between two ResNet blocks."""
    parts = [resnet("mid_block.resnets.0", taken, taken[0], time_width=None)]
    if config.get("mid_block_add_attention", True):
        parts.append(pixel_attention("mid_block.attentions.0", taken))
    parts.append(resnet("mid_block.resnets.1", taken, taken[0], time_width=None))
    return holding("mid_block", "UNetMidBlock2D", parts)


def _check(config: Mapping[str, Any]) -> None:
    """Hold the config against the structure that is described here.

    Raises:
        CheckpointError: It has another.
    """
    hint = "give a Stable Diffusion v1 checkpoint; export it and inspect the bundle"
    levels = config["block_out_channels"]
    if not all(type(count) is int and count > 0 for count in levels):
        raise CheckpointError(f"vae/config.json: block_out_channels is {str(levels)[:80]}", hint=hint)
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name) != [kind] * len(levels):
            found = str(config.get(name))[:80]
            raise CheckpointError(f"vae/config.json: {name} is {found}; expected {kind} at each level", hint=hint)
    layers = config.get("layers_per_block", 1)
    if type(layers) is not int or not 0 < layers <= 64:
        raise CheckpointError(f"vae/config.json: layers_per_block is {str(layers)[:80]}; expected 1 to 64", hint=hint)
