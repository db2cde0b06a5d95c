"""Names of the original layout: every tensor, on v1's and on odd configs, against diffusers' own conversion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.checkpoint.ldm_names import NAMES, PREFIXES, split_name
from tests.checkpoint.original_layout import original_tensors
from tests.models.sd_v1_random import tensor_shapes
from tests.models.tiny import COARSE_ATTENTION

CHANGES: dict[str, Mapping[str, Any]] = {
    "v1": {},
    "one layer": {"layers_per_block": 1},
    "three layers, coarse attention": {"layers_per_block": 3, **COARSE_ATTENTION},
}


def convert_by_diffusers(component: str, original: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Convert by diffusers, the reference."""
    if component == "text_encoder":
        return dict(convert_ldm_clip_checkpoint(original, remove_prefix=PREFIXES[component][0]))
    convert = convert_ldm_unet_checkpoint if component == "unet" else convert_ldm_vae_checkpoint
    return dict(convert(original, config))


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("variant", CHANGES)
def test_names_equal_diffusers_conversion(component: str, variant: str) -> None:
    config = json.loads((SD_V1 / component / "config.json").read_bytes())
    if component == "unet" or (component == "vae" and variant == "one layer"):
        config |= CHANGES[variant]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(component, config).items()}
    original = original_tensors(component, tensors, config)
    assert len(original) == len(tensors)
    ours = {NAMES[component](split_name(name)[1], config): name for name in original}
    assert ours.keys() == tensors.keys()
    reference = convert_by_diffusers(component, dict(original), config)
    assert reference.keys() == tensors.keys()
    for name, tensor in reference.items():
        if component == "vae" and ".attentions." in name:  # reshaped there, so not the same object
            assert tensor.shape == tensors[name].shape
        else:
            assert tensor is original[ours[name]]


def test_negative_control_a_strange_name_stays_strange() -> None:
    config = {"layers_per_block": 2, "block_out_channels": [1, 2, 3, 4]}
    assert NAMES["unet"]("input_hint_block.0.weight", config) == "input_hint_block.0.weight"
    assert NAMES["vae"]("loss.logvar", config) == "loss.logvar"
    assert NAMES["text_encoder"]("embeddings.x", config) == "text_model.embeddings.x"


def test_components_are_told_by_their_prefix() -> None:
    assert (
        split_name("first_stage_model.quant_conv.bias")
        == split_name("vae.quant_conv.bias")
        == ("vae", "quant_conv.bias")
    )
    assert split_name("model.diffusion_model.out.2.bias") == ("unet", "out.2.bias")
    assert split_name("cond_stage_model.logit_scale") == ("", "cond_stage_model.logit_scale")
