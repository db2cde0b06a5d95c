"""Fields of config.json that decide what a network computes, and the libraries' defaults for missing ones.

Names and defaults are those of UNet2DConditionModel, AutoencoderKL and CLIPTextConfig. No network reads the other
fields (version, training and half-precision settings): they may hold anything and are not passed to any library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdrt.files import canonical_json

DECIDING: dict[str, frozenset[str]] = {
    "text_encoder": frozenset(
        [
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "layer_norm_eps",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
        ]
    ),
    "unet": frozenset(
        [
            "act_fn",
            "addition_embed_type",
            "attention_head_dim",
            "attention_type",
            "block_out_channels",
            "center_input_sample",
            "class_embed_type",
            "class_embeddings_concat",
            "conv_in_kernel",
            "conv_out_kernel",
            "cross_attention_dim",
            "cross_attention_norm",
            "down_block_types",
            "downsample_padding",
            "dual_cross_attention",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "flip_sin_to_cos",
            "freq_shift",
            "in_channels",
            "layers_per_block",
            "mid_block_only_cross_attention",
            "mid_block_scale_factor",
            "mid_block_type",
            "norm_eps",
            "norm_num_groups",
            "num_attention_heads",
            "num_class_embeds",
            "only_cross_attention",
            "out_channels",
            "resnet_out_scale_factor",
            "resnet_skip_time_act",
            "resnet_time_scale_shift",
            "reverse_transformer_layers_per_block",
            "sample_size",
            "time_cond_proj_dim",
            "time_embedding_act_fn",
            "time_embedding_dim",
            "time_embedding_type",
            "timestep_post_act",
            "transformer_layers_per_block",
            "up_block_types",
            "upcast_attention",
            "use_linear_projection",
        ]
    ),
    "vae": frozenset(
        [
            "act_fn",
            "block_out_channels",
            "down_block_types",
            "in_channels",
            "latent_channels",
            "latents_mean",
            "latents_std",
            "layers_per_block",
            "mid_block_add_attention",
            "norm_num_groups",
            "out_channels",
            "scaling_factor",
            "shift_factor",
            "up_block_types",
            "use_post_quant_conv",
            "use_quant_conv",
        ]
    ),
}
#: The libraries' defaults for missing fields. Defaults of other fields are set when the network is built.
DEFAULTS: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "max_position_embeddings": 77,
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "unet": {
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "block_out_channels": [64],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "scaling_factor": 0.18215,
    },
}
#: The field in which diffusers lists the fields that it sets to its defaults.
LEFT_TO_DEFAULTS = "_use_default_values"


def completed(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with defaults for missing deciding fields, without other fields that JSON cannot hold."""
    left_out = config.get(LEFT_TO_DEFAULTS)
    left_out = left_out if isinstance(left_out, list) else []
    deciding = DECIDING[component]
    kept = {
        field: value
        for field, value in config.items()
        if field != LEFT_TO_DEFAULTS and field not in left_out and (field in deciding or is_json(value))
    }
    return {**{field: value for field, value in DEFAULTS[component].items() if field not in kept}, **kept}


def deciding(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that are passed to a library."""
    return {field: value for field, value in config.items() if field in DECIDING[component]}


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON; NaN and Infinity, which Python's parser accepts, cannot."""
    try:
        canonical_json(value)
    except (ValueError, RecursionError):
        return False
    return True
