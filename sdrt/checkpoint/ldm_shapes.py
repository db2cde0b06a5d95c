"""Names and shapes of the tensors of a single file in the original layout (CompVis latent-diffusion), from configs.

A file's header is compared with them, so that mismatches are found before tensors are read or written. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def unet_shapes(config: Config) -> Shapes:
    """Return the shapes of the UNet's tensors by their original names without prefix."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    first, time_width = channels[0], 4 * channels[0]
    shapes = {
        **_linear("time_embed.0", time_width, first),
        **_linear("time_embed.2", time_width, time_width),
        **_convolution("input_blocks.0.0", first, config.get("in_channels", 4)),
    }
    skips, block, width = [first], 1, first
    for level, (out, kind) in enumerate(zip(channels, config["down_block_types"], strict=True)):
        for _ in range(layers):
            shapes |= _unet_resnet(f"input_blocks.{block}.0", out, width, time_width)
            if "CrossAttn" in kind:
                shapes |= _transformer(f"input_blocks.{block}.1", out, config)
            skips, block, width = [*skips, out], block + 1, out
        if level < len(channels) - 1:
            shapes |= _convolution(f"input_blocks.{block}.0.op", width, width)
            skips, block = [*skips, width], block + 1
    shapes |= _unet_resnet("middle_block.0", width, width, time_width)
    shapes |= _transformer("middle_block.1", width, config)
    shapes |= _unet_resnet("middle_block.2", width, width, time_width)
    block = 0
    for level, (out, kind) in enumerate(zip(reversed(channels), config["up_block_types"], strict=True)):
        attends = "CrossAttn" in kind
        for layer in range(layers + 1):
            shapes |= _unet_resnet(f"output_blocks.{block}.0", out, width + skips.pop(), time_width)
            if attends:
                shapes |= _transformer(f"output_blocks.{block}.1", out, config)
            if layer == layers and level < len(channels) - 1:
                shapes |= _convolution(f"output_blocks.{block}.{2 if attends else 1}.conv", out, out)
            block, width = block + 1, out
    return shapes | _norm("out.0", first) | _convolution("out.2", config.get("out_channels", 4), first)


def vae_shapes(config: Config) -> Shapes:
    """Return the shapes of the autoencoder's tensors by their original names without prefix."""
    channels, layers, latents = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    shapes = _convolution("encoder.conv_in", channels[0], config["in_channels"])
    width = channels[0]
    for level, out in enumerate(channels):
        for layer in range(layers):
            shapes |= _vae_resnet(f"encoder.down.{level}.block.{layer}", out, width)
            width = out
        if level < len(channels) - 1:
            shapes |= _convolution(f"encoder.down.{level}.downsample.conv", width, width)
    shapes |= _vae_middle("encoder", width) | _norm("encoder.norm_out", width)
    shapes |= _convolution("encoder.conv_out", 2 * latents, width)
    shapes |= _convolution("quant_conv", 2 * latents, 2 * latents, kernel=1)
    shapes |= _convolution("post_quant_conv", latents, latents, kernel=1)
    shapes |= _convolution("decoder.conv_in", width, latents) | _vae_middle("decoder", width)
    for level, out in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            shapes |= _vae_resnet(f"decoder.up.{level}.block.{layer}", out, width)
            width = out
        if level > 0:
            shapes |= _convolution(f"decoder.up.{level}.upsample.conv", width, width)
    return shapes | _norm("decoder.norm_out", width) | _convolution("decoder.conv_out", config["out_channels"], width)


def text_encoder_shapes(config: Config) -> Shapes:
    """Return the shapes of CLIP's tensors by their original names without prefix."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (config["vocab_size"], width),
        "text_model.embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width) | _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes | _norm("text_model.final_layer_norm", width)


SHAPES = {"text_encoder": text_encoder_shapes, "unet": unet_shapes, "vae": vae_shapes}


def _linear(name: str, out: int, taken: int, *, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (out, taken)}
    return weight | ({f"{name}.bias": (out,)} if bias else {})


def _convolution(name: str, out: int, taken: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (out, taken, kernel, kernel), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _unet_resnet(name: str, out: int, taken: int, time_width: int) -> Shapes:
    shapes = {
        **_norm(f"{name}.in_layers.0", taken),
        **_convolution(f"{name}.in_layers.2", out, taken),
        **_linear(f"{name}.emb_layers.1", out, time_width),
        **_norm(f"{name}.out_layers.0", out),
        **_convolution(f"{name}.out_layers.3", out, out),
    }
    return shapes if out == taken else shapes | _convolution(f"{name}.skip_connection", out, taken, kernel=1)


def _transformer(name: str, width: int, config: Config) -> Shapes:
    block, context = f"{name}.transformer_blocks.0", config["cross_attention_dim"]
    shapes = _norm(f"{name}.norm", width)
    for end in ("proj_in", "proj_out"):
        if config.get("use_linear_projection"):
            shapes |= _linear(f"{name}.{end}", width, width)
        else:
            shapes |= _convolution(f"{name}.{end}", width, width, kernel=1)
    for attention, states in (("attn1", width), ("attn2", context)):
        shapes |= _linear(f"{block}.{attention}.to_q", width, width, bias=False)
        shapes |= _linear(f"{block}.{attention}.to_k", width, states, bias=False)
        shapes |= _linear(f"{block}.{attention}.to_v", width, states, bias=False)
        shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
    for number in (1, 2, 3):
        shapes |= _norm(f"{block}.norm{number}", width)
    return shapes | _linear(f"{block}.ff.net.0.proj", 8 * width, width) | _linear(f"{block}.ff.net.2", width, 4 * width)


def _vae_resnet(name: str, out: int, taken: int) -> Shapes:
    shapes = {
        **_norm(f"{name}.norm1", taken),
        **_convolution(f"{name}.conv1", out, taken),
        **_norm(f"{name}.norm2", out),
        **_convolution(f"{name}.conv2", out, out),
    }
    return shapes if out == taken else shapes | _convolution(f"{name}.nin_shortcut", out, taken, kernel=1)


def _vae_middle(side: str, width: int) -> Shapes:
    shapes = _vae_resnet(f"{side}.mid.block_1", width, width) | _vae_resnet(f"{side}.mid.block_2", width, width)
    shapes |= _norm(f"{side}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _convolution(f"{side}.mid.attn_1.{part}", width, width, kernel=1)
    return shapes
