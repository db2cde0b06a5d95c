"""The UNet as a tree, from its config alone: what diffusers' UNet2DConditionModel builds, and what flows through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, holding
from sdrt.inspect.layers import convolution, downsampler, group_norm, linear, resnet, transformer, upsampler

#: Fields that change the structure in ways that no Stable Diffusion v1 has, and the values that do not.
USUAL: dict[str, tuple[Any, ...]] = {
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
ATTENDING = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass
class _Flow:
    """What stands at one place of the UNet: the hidden states, the skips kept for the way up, and the config."""

    config: Mapping[str, Any]
    states: Shape
    time_width: int
    hidden: Shape
    skips: list[Shape] = field(default_factory=list)

    def advance(self, block: Block, *, keep: bool = False) -> Block:
        """Go through a block; its output is kept for the way up where ``keep`` says so."""
        self.hidden = block.output
        if keep:
            self.skips.append(block.output)
        return block

    def transformer(self, name: str, level: int) -> Block:
        """A transformer on the hidden states."""
        layers = _by_level(self.config, "transformer_layers_per_block", 1)[level]
        by_linear = bool(self.config.get("use_linear_projection", False))
        return transformer(name, self.hidden, self.states, layers=layers, by_linear=by_linear)


def unet_tree(config: Mapping[str, Any], tokens: int) -> Block:
    """The UNet as a tree.

    Args:
        config: unet/config.json, as a `Checkpoint` holds it.
        tokens: How many tokens a prompt has.

    Raises:
        CheckpointError: The config has a structure that Stable Diffusion v1 has not.
    """
    _check(config)
    channels = config["block_out_channels"]
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    time_width = config.get("time_embedding_dim") or 4 * channels[0]
    embedding = [linear("time_embedding.linear_1", (channels[0],), time_width)]
    embedding.append(linear("time_embedding.linear_2", (time_width,), time_width))
    taken = (config.get("in_channels", 4), height, width)
    flow = _Flow(config, (tokens, config["cross_attention_dim"]), time_width, taken)
    kernel = config.get("conv_in_kernel", 3)
    parts = [
        holding("time_embedding", "TimestepEmbedding", embedding),
        flow.advance(convolution("conv_in", taken, channels[0], kernel=kernel), keep=True),
    ]
    parts += [_down(flow, level, kind) for level, kind in enumerate(config["down_block_types"])]
    parts.append(_middle(flow))
    parts += [_up(flow, number, kind) for number, kind in enumerate(config["up_block_types"])]
    kernel = config.get("conv_out_kernel", 3)
    parts.append(group_norm("conv_norm_out", flow.hidden))
    parts.append(convolution("conv_out", flow.hidden, config.get("out_channels", 4), kernel=kernel))
    return holding("", "UNet2DConditionModel", parts, input=taken)


def _down(flow: _Flow, level: int, kind: str) -> Block:
    """A level of the way down. Each ResNet block, with its transformer, and the downsampler leave a skip."""
    name, channels = f"down_blocks.{level}", flow.config["block_out_channels"]
    parts = []
    for number in range(_by_level(flow.config, "layers_per_block", 2)[level]):
        block = resnet(f"{name}.resnets.{number}", flow.hidden, channels[level], time_width=flow.time_width)
        parts.append(flow.advance(block, keep=not ATTENDING[kind]))
        if ATTENDING[kind]:
            parts.append(flow.advance(flow.transformer(f"{name}.attentions.{number}", level), keep=True))
    if level < len(channels) - 1:
        parts.append(flow.advance(downsampler(f"{name}.downsamplers.0", flow.hidden), keep=True))
    return holding(name, kind, parts)


def _middle(flow: _Flow) -> Block:
    """The middle: a transformer between two ResNet blocks."""
    channels = flow.hidden[0]
    parts = [
        resnet("mid_block.resnets.0", flow.hidden, channels, time_width=flow.time_width),
        flow.transformer("mid_block.attentions.0", -1),
        resnet("mid_block.resnets.1", flow.hidden, channels, time_width=flow.time_width),
    ]
    return holding("mid_block", "UNetMidBlock2DCrossAttn", parts)


def _up(flow: _Flow, number: int, kind: str) -> Block:
    """A level of the way up: one ResNet block more than on the way down, each on the newest skip that is left."""
    name, channels = f"up_blocks.{number}", flow.config["block_out_channels"]
    level = len(channels) - 1 - number
    start, parts = flow.hidden, []
    for layer in range(_by_level(flow.config, "layers_per_block", 2)[level] + 1):
        joined = (flow.hidden[0], flow.skips.pop()[0])
        taken = (sum(joined), *flow.hidden[1:])
        block = resnet(f"{name}.resnets.{layer}", taken, channels[level], time_width=flow.time_width, joined=joined)
        parts.append(flow.advance(block))
        if ATTENDING[kind]:
            parts.append(flow.advance(flow.transformer(f"{name}.attentions.{layer}", level)))
    if level > 0:
        parts.append(flow.advance(upsampler(f"{name}.upsamplers.0", flow.hidden)))
    return holding(name, kind, parts, input=start)


def _check(config: Mapping[str, Any]) -> None:
    """Hold the config against the structures that are described here.

    Raises:
        CheckpointError: It has another.
    """
    for name, usual in USUAL.items():
        if name in config and config[name] not in usual:
            raise _unlike(name, config[name], " or ".join(map(str, usual)))
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not levels or not all(type(count) is int and count > 0 for count in levels):
        raise _unlike("block_out_channels", levels, "a list of numbers of channels")
    for name, direction in (("down_block_types", "Down"), ("up_block_types", "Up")):
        kinds = [kind for kind in ATTENDING if direction in kind]
        found = config.get(name)
        if not isinstance(found, list) or len(found) != len(levels) or not all(kind in kinds for kind in found):
            raise _unlike(name, found, f"{len(levels)} of {' and '.join(kinds)}")
    for name in ("layers_per_block", "transformer_layers_per_block"):
        _by_level(config, name, 1)
    _check_heads(config)
    width = config.get("time_embedding_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise _unlike("time_embedding_dim", width, "a positive whole number")
    for name in ("conv_in_kernel", "conv_out_kernel"):
        kernel = config.get(name, 3)
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise _unlike(name, kernel, "an odd number")


def _check_heads(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless heads divide the channels wherever there is attention.

    attention_head_dim is the number of heads. diffusers also takes one that does not divide, by a transformer of fewer
    channels than its level, which is not described here.
    """
    levels, heads = config["block_out_channels"], _by_level(config, "attention_head_dim", 8)
    attending = [ATTENDING[kind] for kind in config["down_block_types"]]
    for level, kind in enumerate(reversed(config["up_block_types"])):
        attending[level] |= ATTENDING[kind]
    attending[-1] = True  # the middle
    for level, count in enumerate(heads):
        if attending[level] and levels[level] % count:
            raise _unlike("attention_head_dim", config.get("attention_head_dim", 8), f"divisors of {levels}")


def _by_level(config: Mapping[str, Any], name: str, usual: int) -> Sequence[int]:
    """A field that is one number for all levels, or a list with a number a level.

    Raises:
        CheckpointError: It is neither.
    """
    value, levels = config.get(name, usual), len(config["block_out_channels"])
    numbers = [value] * levels if isinstance(value, int) else value
    if not isinstance(numbers, list) or len(numbers) != levels:
        raise _unlike(name, value, "a number, or one for each level")
    if not all(type(number) is int and 0 < number <= 64 for number in numbers):
        raise _unlike(name, value, "numbers from 1 to 64")
    return numbers


def _unlike(name: str, found: Any, expected: str) -> CheckpointError:
    message = f"unet/config.json: {name} is {str(found)[:80]}; expected {expected}"
    return CheckpointError(message, hint="give a Stable Diffusion v1 checkpoint; export it and inspect the bundle")
