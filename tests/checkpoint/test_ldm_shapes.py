"""Shapes of the original layout: equal to those of the networks that the libraries build, name by name."""

from __future__ import annotations

from typing import Any

import pytest

from sdrt.checkpoint.ldm_names import split_name
from sdrt.checkpoint.ldm_shapes import SHAPES
from tests.checkpoint.original_layout import original_name
from tests.models import odd_checkpoints
from tests.models.sd_v1_random import tensor_shapes
from tests.models.tiny import TEXT_ENCODER, UNET, VAE, v1_config

TINY = {"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE}


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("variant", ["v1", "tiny", *odd_checkpoints()])
def test_shapes_equal_the_networks(component: str, variant: str) -> None:
    config = v1_config(component)
    if variant != "v1":
        changes: dict[str, Any] = {**odd_checkpoints().get(variant, {})}
        config |= {**TINY[component], **changes.get(component, {})}
    expected = {}
    for name, shape in tensor_shapes(component, config).items():
        is_linear = component == "vae" and ".attentions." in name and len(shape) == 2
        expected[split_name(original_name(component, name, config))[1]] = (*shape, 1, 1) if is_linear else shape
    assert SHAPES[component](config) == expected
