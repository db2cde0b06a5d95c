"""Blocks of layers that the networks share, with parameters and FLOPs computed from shapes.

Names and classes are those of diffusers.
"""

from __future__ import annotations

import math

from sdrt.inspect.block import Block, Shape, parent_block


def conv2d_block(name: str, input_shape: Shape, channels: int, *, kernel: int = 3, stride: int = 1) -> Block:
    """Build a convolution with bias, padded so that the output's size is the input's divided by ``stride``."""
    height, width = input_shape[1] // stride, input_shape[2] // stride
    weights = channels * input_shape[0] * kernel**2
    return Block(
        name, "Conv2d", weights + channels, 2 * weights * height * width, input_shape, (channels, height, width)
    )


def linear_block(name: str, input_shape: Shape, width: int, *, bias: bool = True) -> Block:
    """Build a matrix product over the last axis."""
    weights = input_shape[-1] * width
    flops = 2 * weights * math.prod(input_shape[:-1])
    return Block(name, "Linear", weights + bias * width, flops, input_shape, (*input_shape[:-1], width))


def group_norm_block(name: str, shape: Shape) -> Block:
    """Build a group normalisation with a scale and a bias per channel; by convention it counts no FLOPs."""
    return Block(name, "GroupNorm", 2 * shape[0], 0, shape, shape)


def layer_norm_block(name: str, shape: Shape) -> Block:
    """Build a layer normalisation over the last axis; by convention it counts no FLOPs."""
    return Block(name, "LayerNorm", 2 * shape[-1], 0, shape, shape)


def count_attention_flops(queries: int, keys: int, width: int) -> int:
    """Return the FLOPs of an attention's two products, whatever its number of heads.

    Args:
        queries: Number of queries.
        keys: Number of keys, and of values.
        width: Width of queries, keys and values, over all heads.
    """
    return 4 * queries * keys * width


def resnet_block(
    name: str, input_shape: Shape, channels: int, *, time_width: int | None, joined: tuple[int, ...] = ()
) -> Block:
    """Build a ResnetBlock2D: two convolutions, the time embedding between, a 1x1 shortcut if channels change.

    Args:
        name: Its path.
        input_shape: Shape of its input, after concatenation.
        channels: Channels of its output.
        time_width: Width of the time embedding; None in the VAE, which has none.
        joined: Channels that were concatenated to form the input.
    """
    output_shape = (channels, *input_shape[1:])
    parts = [group_norm_block(f"{name}.norm1", input_shape), conv2d_block(f"{name}.conv1", input_shape, channels)]
    if time_width is not None:
        parts.append(linear_block(f"{name}.time_emb_proj", (time_width,), channels))
    parts += [group_norm_block(f"{name}.norm2", output_shape), conv2d_block(f"{name}.conv2", output_shape, channels)]
    if input_shape[0] != channels:
        parts.append(conv2d_block(f"{name}.conv_shortcut", input_shape, channels, kernel=1))
    return parent_block(name, "ResnetBlock2D", parts, output=output_shape, joined=joined)


def downsample_block(name: str, input_shape: Shape) -> Block:
    """Build a Downsample2D: a convolution of stride 2."""
    return parent_block(name, "Downsample2D", [conv2d_block(f"{name}.conv", input_shape, input_shape[0], stride=2)])


def upsample_block(name: str, input_shape: Shape) -> Block:
    """Build an Upsample2D: nearest-neighbour upsampling by 2, then a convolution."""
    doubled = (input_shape[0], 2 * input_shape[1], 2 * input_shape[2])
    return parent_block(name, "Upsample2D", [conv2d_block(f"{name}.conv", doubled, input_shape[0])], input=input_shape)


def transformer_block(name: str, input_shape: Shape, states: Shape, *, layers: int, use_linear: bool) -> Block:
    """Build a Transformer2DModel, in which pixels attend to each other and to the prompt.

    Args:
        name: Its path.
        input_shape: Shape of its input and of its output.
        states: Shape of the text encoder's hidden states.
        layers: Number of its BasicTransformerBlocks.
        use_linear: Whether its projections are matrix products instead of 1x1 convolutions.
    """
    channels, height, width = input_shape
    tokens = (height * width, channels)
    parts = [group_norm_block(f"{name}.norm", input_shape)]
    parts.append(
        linear_block(f"{name}.proj_in", tokens, channels)
        if use_linear
        else conv2d_block(f"{name}.proj_in", input_shape, channels, kernel=1)
    )
    parts += [
        _basic_transformer_block(f"{name}.transformer_blocks.{number}", tokens, states) for number in range(layers)
    ]
    parts.append(
        linear_block(f"{name}.proj_out", tokens, channels)
        if use_linear
        else conv2d_block(f"{name}.proj_out", input_shape, channels, kernel=1)
    )
    return parent_block(name, "Transformer2DModel", parts, output=input_shape)


def _basic_transformer_block(name: str, tokens: Shape, states: Shape) -> Block:
    parts = [
        layer_norm_block(f"{name}.norm1", tokens),
        _attention_block(f"{name}.attn1", tokens, tokens),
        layer_norm_block(f"{name}.norm2", tokens),
        _attention_block(f"{name}.attn2", tokens, states),
        layer_norm_block(f"{name}.norm3", tokens),
        _feed_forward_block(f"{name}.ff", tokens),
    ]
    return parent_block(name, "BasicTransformerBlock", parts)


def _attention_block(name: str, tokens: Shape, states: Shape) -> Block:
    """Build an attention of ``tokens`` to ``states``; the projections of queries, keys and values have no bias."""
    width = tokens[-1]
    parts = [
        linear_block(f"{name}.to_q", tokens, width, bias=False),
        linear_block(f"{name}.to_k", states, width, bias=False),
        linear_block(f"{name}.to_v", states, width, bias=False),
        linear_block(f"{name}.to_out.0", tokens, width),
    ]
    return parent_block(name, "Attention", parts, flops=count_attention_flops(tokens[0], states[0], width))


def _feed_forward_block(name: str, tokens: Shape) -> Block:
    """Build a feed-forward block with GEGLU (arXiv:2002.05202); its inner width is four times that of the tokens."""
    inner = 4 * tokens[-1]
    gated = parent_block(
        f"{name}.net.0", "GEGLU", [linear_block(f"{name}.net.0.proj", tokens, 2 * inner)], output=(tokens[0], inner)
    )
    return parent_block(name, "FeedForward", [gated, linear_block(f"{name}.net.2", gated.output, tokens[-1])])


def vae_attention_block(name: str, input_shape: Shape) -> Block:
    """Build the VAE's attention: one head, with pixels as tokens."""
    channels, height, width = input_shape
    tokens = (height * width, channels)
    parts = [group_norm_block(f"{name}.group_norm", (channels, height * width))]
    parts += [linear_block(f"{name}.{part}", tokens, channels) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    flops = count_attention_flops(tokens[0], tokens[0], channels)
    return parent_block(name, "Attention", parts, input=input_shape, output=input_shape, flops=flops)
