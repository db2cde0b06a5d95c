"""The UNet as a tree, with the structure of diffusers' UNet2DConditionModel, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, parent_block
from sdrt.inspect.layers import (
    conv2d_block,
    downsample_block,
    group_norm_block,
    linear_block,
    resnet_block,
    transformer_block,
    upsample_block,
)

#: Fields that change the structure, and their values in Stable Diffusion v1.
EXPECTED_VALUES: dict[str, tuple[Any, ...]] = {
    "num_attention_heads": (None,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
    "reverse_transformer_layers_per_block": (None,),
}
HAS_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass
class _Flow:
    """State while the UNet's tree is built.

    Attributes:
        config: Contents of unet/config.json.
        states: Shape of the text encoder's hidden states.
        time_width: Width of the time embedding.
        hidden: Shape of the current hidden states.
        skips: Shapes of the skip connections that the way up has not used yet.
    """

    config: Mapping[str, Any]
    states: Shape
    time_width: int
    hidden: Shape
    skips: list[Shape] = field(default_factory=list)

    def advance(self, block: Block, *, keep: bool = False) -> Block:
        """Make a block's output the current hidden states, and with ``keep`` a skip connection; return the block."""
        self.hidden = block.output
        if keep:
            self.skips.append(block.output)
        return block

    def transformer(self, name: str, level: int) -> Block:
        """Build a transformer over the current hidden states."""
        layers = _by_level(self.config, "transformer_layers_per_block", 1)[level]
        use_linear = bool(self.config.get("use_linear_projection", False))
        return transformer_block(name, self.hidden, self.states, layers=layers, use_linear=use_linear)


def unet_tree(config: Mapping[str, Any], tokens: int) -> Block:
    """Build the tree of the UNet.

    Args:
        config: Contents of unet/config.json, as in `Checkpoint.unet`.
        tokens: Number of tokens of a prompt.

    Raises:
        CheckpointError: The config describes a structure that Stable Diffusion v1 does not have.
    """
    _check(config)
    channels = config["block_out_channels"]
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    time_width = config.get("time_embedding_dim") or 4 * channels[0]
    embedding = [linear_block("time_embedding.linear_1", (channels[0],), time_width)]
    embedding.append(linear_block("time_embedding.linear_2", (time_width,), time_width))
    input_shape = (config.get("in_channels", 4), height, width)
    flow = _Flow(config, (tokens, config["cross_attention_dim"]), time_width, input_shape)
    kernel = config.get("conv_in_kernel", 3)
    parts = [
        parent_block("time_embedding", "TimestepEmbedding", embedding),
        flow.advance(conv2d_block("conv_in", input_shape, channels[0], kernel=kernel), keep=True),
    ]
    parts += [_down(flow, level, kind) for level, kind in enumerate(config["down_block_types"])]
    parts.append(_middle(flow))
    parts += [_up(flow, number, kind) for number, kind in enumerate(config["up_block_types"])]
    kernel = config.get("conv_out_kernel", 3)
    parts.append(group_norm_block("conv_norm_out", flow.hidden))
    parts.append(conv2d_block("conv_out", flow.hidden, config.get("out_channels", 4), kernel=kernel))
    return parent_block("", "UNet2DConditionModel", parts, input=input_shape)


def _down(flow: _Flow, level: int, kind: str) -> Block:
    """Build a level on the way down; each ResNet block, with its transformer, and the downsampler add a skip."""
    name, channels = f"down_blocks.{level}", flow.config["block_out_channels"]
    parts = []
    for number in range(_by_level(flow.config, "layers_per_block", 2)[level]):
        block = resnet_block(f"{name}.resnets.{number}", flow.hidden, channels[level], time_width=flow.time_width)
        parts.append(flow.advance(block, keep=not HAS_ATTENTION[kind]))
        if HAS_ATTENTION[kind]:
            parts.append(flow.advance(flow.transformer(f"{name}.attentions.{number}", level), keep=True))
    if level < len(channels) - 1:
        parts.append(flow.advance(downsample_block(f"{name}.downsamplers.0", flow.hidden), keep=True))
    return parent_block(name, kind, parts)


def _middle(flow: _Flow) -> Block:
    """Build the middle: a transformer between two ResNet blocks."""
    channels = flow.hidden[0]
    parts = [
        resnet_block("mid_block.resnets.0", flow.hidden, channels, time_width=flow.time_width),
        flow.transformer("mid_block.attentions.0", -1),
        resnet_block("mid_block.resnets.1", flow.hidden, channels, time_width=flow.time_width),
    ]
    return parent_block("mid_block", "UNetMidBlock2DCrossAttn", parts)


def _up(flow: _Flow, number: int, kind: str) -> Block:
    """Build a level on the way up: one more ResNet block than on the way down, each using the newest skip left."""
    name, channels = f"up_blocks.{number}", flow.config["block_out_channels"]
    level = len(channels) - 1 - number
    start, parts = flow.hidden, []
    for layer in range(_by_level(flow.config, "layers_per_block", 2)[level] + 1):
        joined = (flow.hidden[0], flow.skips.pop()[0])
        input_shape = (sum(joined), *flow.hidden[1:])
        block = resnet_block(
            f"{name}.resnets.{layer}", input_shape, channels[level], time_width=flow.time_width, joined=joined
        )
        parts.append(flow.advance(block))
        if HAS_ATTENTION[kind]:
            parts.append(flow.advance(flow.transformer(f"{name}.attentions.{layer}", level)))
    if level > 0:
        parts.append(flow.advance(upsample_block(f"{name}.upsamplers.0", flow.hidden)))
    return parent_block(name, kind, parts, input=start)


def _check(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the config describes a structure that this module can build."""
    for name, usual in EXPECTED_VALUES.items():
        if name in config and config[name] not in usual:
            raise _unsupported(name, config[name], " or ".join(map(str, usual)))
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not levels or not all(type(count) is int and count > 0 for count in levels):
        raise _unsupported("block_out_channels", levels, "a list of channel counts")
    for name, direction in (("down_block_types", "Down"), ("up_block_types", "Up")):
        kinds = [kind for kind in HAS_ATTENTION if direction in kind]
        found = config.get(name)
        if not isinstance(found, list) or len(found) != len(levels) or not all(kind in kinds for kind in found):
            raise _unsupported(name, found, f"{len(levels)} of {' and '.join(kinds)}")
    for name in ("layers_per_block", "transformer_layers_per_block"):
        _by_level(config, name, 1)
    _check_heads(config)
    width = config.get("time_embedding_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise _unsupported("time_embedding_dim", width, "a positive integer")
    for name in ("conv_in_kernel", "conv_out_kernel"):
        kernel = config.get(name, 3)
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise _unsupported(name, kernel, "an odd number")


def _check_heads(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless heads divide the channels wherever there is attention.

    attention_head_dim is the number of heads. diffusers also accepts numbers that do not divide the channels, with a
    transformer of fewer channels than its level, which this module does not build.
    """
    levels, heads = config["block_out_channels"], _by_level(config, "attention_head_dim", 8)
    attending = [HAS_ATTENTION[kind] for kind in config["down_block_types"]]
    for level, kind in enumerate(reversed(config["up_block_types"])):
        attending[level] |= HAS_ATTENTION[kind]
    attending[-1] = True  # the middle
    for level, count in enumerate(heads):
        if attending[level] and levels[level] % count:
            raise _unsupported("attention_head_dim", config.get("attention_head_dim", 8), f"divisors of {levels}")


def _by_level(config: Mapping[str, Any], name: str, usual: int) -> Sequence[int]:
    """Return a field's number for each level; the config has one for all levels, or a list.

    Raises:
        CheckpointError: The field is neither, or a number is not in 1..64.
    """
    value, levels = config.get(name, usual), len(config["block_out_channels"])
    numbers = [value] * levels if isinstance(value, int) else value
    if not isinstance(numbers, list) or len(numbers) != levels:
        raise _unsupported(name, value, "a number, or one for each level")
    if not all(type(number) is int and 0 < number <= 64 for number in numbers):
        raise _unsupported(name, value, "numbers from 1 to 64")
    return numbers


def _unsupported(name: str, found: Any, expected: str) -> CheckpointError:
    message = f"unet/config.json: {name} is {str(found)[:80]}; expected {expected}"
    return CheckpointError(message, hint="give a Stable Diffusion v1 checkpoint; export it and inspect the bundle")
