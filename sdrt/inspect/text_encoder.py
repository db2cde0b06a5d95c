"""The text encoder as a tree, with the structure of transformers' CLIPTextModel, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block, Shape, parent_block
from sdrt.inspect.layers import count_attention_flops, layer_norm_block, linear_block


def text_encoder_tree(config: Mapping[str, Any], max_tokens: int | None = None) -> Block:
    """Build the tree of the text encoder.

    Args:
        config: Contents of text_encoder/config.json, as in `Checkpoint.text_encoder`.
        max_tokens: Number of tokens of a prompt; None is the config's number of positions.

    Raises:
        CheckpointError: num_hidden_layers or intermediate_size is not an integer from 1 to 65536.
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
        parent_block("embeddings", "CLIPTextEmbeddings", embeddings),
        parent_block("encoder", "CLIPEncoder", encoder),
        layer_norm_block("final_layer_norm", hidden),
    ]
    return parent_block("", "CLIPTextModel", parts)


def _layer(name: str, hidden: Shape, inner: int) -> Block:
    """Build a layer: causal self-attention, then two matrix products."""
    tokens, width = hidden
    attention = [linear_block(f"{name}.self_attn.{part}_proj", hidden, width) for part in ("q", "k", "v", "out")]
    products = [linear_block(f"{name}.mlp.fc1", hidden, inner), linear_block(f"{name}.mlp.fc2", (tokens, inner), width)]
    flops = count_attention_flops(tokens, tokens, width)
    parts = [
        layer_norm_block(f"{name}.layer_norm1", hidden),
        parent_block(f"{name}.self_attn", "CLIPAttention", attention, flops=flops),
        layer_norm_block(f"{name}.layer_norm2", hidden),
        parent_block(f"{name}.mlp", "CLIPMLP", products),
    ]
    return parent_block(name, "CLIPEncoderLayer", parts)


def _count(config: Mapping[str, Any], name: str) -> int:
    found = config.get(name)
    if type(found) is not int or not 0 < found <= 1 << 16:
        message = f"text_encoder/config.json: {name} is {str(found)[:80]}; expected an integer from 1 to 65536"
        raise CheckpointError(message, hint="download or save the checkpoint again")
    return found
