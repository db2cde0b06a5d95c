"""The text encoder as a tree, from its config alone: what transformers' CLIPTextModel builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, holding
from sdrt.inspect.layers import attention_flops, layer_norm, linear


def text_encoder_tree(config: Mapping[str, Any], max_tokens: int | None = None) -> Block:
    """The text encoder: token ids become a hidden state each.

    Args:
        config: text_encoder/config.json, as a `Checkpoint` holds it.
        max_tokens: Tokens of a prompt; None is as many as the config has positions.

    Raises:
        CheckpointError: The number or width of its layers is not a number.
    """
    positions, width = config["max_position_embeddings"], config["hidden_size"]
    length = positions if max_tokens is None else max_tokens
    layers, inner = (_count(config, name) for name in ("num_hidden_layers", "intermediate_size"))
    hidden = (length, width)
    embeddings = [
        Block("embeddings.token_embedding", "Embedding", config["vocab_size"] * width, 0, (length,), hidden),
        Block("embeddings.position_embedding", "Embedding", positions * width, 0, (length,), hidden),
    ]
    encoder = [_layer(f"encoder.layers.{number}", hidden, inner) for number in range(layers)]
    parts = [
        holding("embeddings", "CLIPTextEmbeddings", embeddings),
        holding("encoder", "CLIPEncoder", encoder),
        layer_norm("final_layer_norm", hidden),
    ]
    return holding("", "CLIPTextModel", parts)


def _layer(name: str, hidden: Shape, inner: int) -> Block:
    """Attention to itself and to what is before, then two matrix products."""
    tokens, width = hidden
    attention = [linear(f"{name}.self_attn.{part}_proj", hidden, width) for part in ("q", "k", "v", "out")]
    products = [linear(f"{name}.mlp.fc1", hidden, inner), linear(f"{name}.mlp.fc2", (tokens, inner), width)]
    flops = attention_flops(tokens, tokens, width)
    parts = [
        layer_norm(f"{name}.layer_norm1", hidden),
        holding(f"{name}.self_attn", "CLIPAttention", attention, flops=flops),
        layer_norm(f"{name}.layer_norm2", hidden),
        holding(f"{name}.mlp", "CLIPMLP", products),
    ]
    return holding(name, "CLIPEncoderLayer", parts)


def _count(config: Mapping[str, Any], name: str) -> int:
    found = config.get(name)
    if type(found) is not int or not 0 < found <= 1 << 16:
        message = f"text_encoder/config.json: {name} is {str(found)[:80]}; expected a positive whole number"
        raise CheckpointError(message, hint="download or save the checkpoint again")
    return found
