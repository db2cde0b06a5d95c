"""Parts that the networks share, counted from their shapes. Names and classes are those of diffusers."""

from __future__ import annotations

import math

from sdrt.inspect.block import Block, Shape, holding


def convolution(name: str, taken: Shape, channels: int, *, kernel: int = 3, stride: int = 1) -> Block:
    """A convolution with bias, padded so that ``stride`` alone decides the size."""
    height, width = taken[1] // stride, taken[2] // stride
    weights = channels * taken[0] * kernel**2
    return Block(name, "Conv2d", weights + channels, 2 * weights * height * width, taken, (channels, height, width))


def linear(name: str, taken: Shape, width: int, *, bias: bool = True) -> Block:
    """A matrix product with the last axis."""
    weights = taken[-1] * width
    flops = 2 * weights * math.prod(taken[:-1])
    return Block(name, "Linear", weights + bias * width, flops, taken, (*taken[:-1], width))


def group_norm(name: str, shape: Shape) -> Block:
    """A group normalisation with a scale and a bias a channel; normalisation counts no FLOPs, as is the custom."""
    return Block(name, "GroupNorm", 2 * shape[0], 0, shape, shape)


def layer_norm(name: str, shape: Shape) -> Block:
    """A layer normalisation over the last axis."""
    return Block(name, "LayerNorm", 2 * shape[-1], 0, shape, shape)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Of both products of an attention: queries with keys, weights with values. The number of heads changes nothing."""
    return 4 * queries * keys * width


def resnet(name: str, taken: Shape, channels: int, *, time_width: int | None, joined: tuple[int, ...] = ()) -> Block:
    """ResnetBlock2D: two convolutions, the time embedding added between, a 1x1 convolution where channels change.

    Args:
        name: Its path.
        taken: Shape of its input, concatenated.
        channels: Of its output.
        time_width: Of the time embedding; None in the VAE, which has none.
        joined: Channels that were concatenated.
    """
    given = (channels, *taken[1:])
    parts = [group_norm(f"{name}.norm1", taken), convolution(f"{name}.conv1", taken, channels)]
    if time_width is not None:
        parts.append(linear(f"{name}.time_emb_proj", (time_width,), channels))
    parts += [group_norm(f"{name}.norm2", given), convolution(f"{name}.conv2", given, channels)]
    if taken[0] != channels:
        parts.append(convolution(f"{name}.conv_shortcut", taken, channels, kernel=1))
    return holding(name, "ResnetBlock2D", parts, output=given, joined=joined)


def downsampler(name: str, taken: Shape) -> Block:
    """Downsample2D: a convolution of stride 2."""
    return holding(name, "Downsample2D", [convolution(f"{name}.conv", taken, taken[0], stride=2)])


def upsampler(name: str, taken: Shape) -> Block:
    """Upsample2D: the nearest neighbour twice along each axis, then a convolution."""
    doubled = (taken[0], 2 * taken[1], 2 * taken[2])
    return holding(name, "Upsample2D", [convolution(f"{name}.conv", doubled, taken[0])], input=taken)


def transformer(name: str, taken: Shape, states: Shape, *, layers: int, by_linear: bool) -> Block:
    """Transformer2DModel: pixels as tokens attend to each other and to the prompt.

    Args:
        name: Its path.
        taken: Shape of its input, which is its output's too.
        states: Shape of the text encoder's hidden states.
        layers: How many BasicTransformerBlocks it has.
        by_linear: Whether it projects by a matrix product instead of a 1x1 convolution.
    """
    channels, height, width = taken
    tokens = (height * width, channels)
    parts = [group_norm(f"{name}.norm", taken)]
    parts.append(
        linear(f"{name}.proj_in", tokens, channels)
        if by_linear
        else convolution(f"{name}.proj_in", taken, channels, kernel=1)
    )
    parts += [_transformer_block(f"{name}.transformer_blocks.{number}", tokens, states) for number in range(layers)]
    parts.append(
        linear(f"{name}.proj_out", tokens, channels)
        if by_linear
        else convolution(f"{name}.proj_out", taken, channels, kernel=1)
    )
    return holding(name, "Transformer2DModel", parts, output=taken)


def _transformer_block(name: str, tokens: Shape, states: Shape) -> Block:
    parts = [
        layer_norm(f"{name}.norm1", tokens),
        _attention(f"{name}.attn1", tokens, tokens),
        layer_norm(f"{name}.norm2", tokens),
        _attention(f"{name}.attn2", tokens, states),
        layer_norm(f"{name}.norm3", tokens),
        _feed_forward(f"{name}.ff", tokens),
    ]
    return holding(name, "BasicTransformerBlock", parts)


def _attention(name: str, tokens: Shape, states: Shape) -> Block:
    """Of ``tokens`` to ``states``; queries, keys and values have no bias."""
    width = tokens[-1]
    parts = [
        linear(f"{name}.to_q", tokens, width, bias=False),
        linear(f"{name}.to_k", states, width, bias=False),
        linear(f"{name}.to_v", states, width, bias=False),
        linear(f"{name}.to_out.0", tokens, width),
    ]
    return holding(name, "Attention", parts, flops=attention_flops(tokens[0], states[0], width))


def _feed_forward(name: str, tokens: Shape) -> Block:
    """Four times as wide within, half of it a gate (GEGLU, arXiv 2002.05202)."""
    inner = 4 * tokens[-1]
    gated = holding(
        f"{name}.net.0", "GEGLU", [linear(f"{name}.net.0.proj", tokens, 2 * inner)], output=(tokens[0], inner)
    )
    return holding(name, "FeedForward", [gated, linear(f"{name}.net.2", gated.output, tokens[-1])])


def pixel_attention(name: str, taken: Shape) -> Block:
    """Attention of the VAE: one head, pixels as tokens."""
    channels, height, width = taken
    tokens = (height * width, channels)
    parts = [group_norm(f"{name}.group_norm", (channels, height * width))]
    parts += [linear(f"{name}.{part}", tokens, channels) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    flops = attention_flops(tokens[0], tokens[0], channels)
    return holding(name, "Attention", parts, input=taken, output=taken, flops=flops)
