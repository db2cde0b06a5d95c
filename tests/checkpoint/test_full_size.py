"""The full-size Stable Diffusion v1 checkpoint: as a folder and as a single file."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from tests.checkpoint.original_layout import as_single_file
from tests.models.sd_v1_random import sd_v1_random

pytestmark = pytest.mark.full


@pytest.fixture(scope="session")
def full_size() -> Path:
    """Return build/sd-v1-random, which `make sd-v1-random` writes."""
    return sd_v1_random(Path(__file__).parents[2] / "build" / "sd-v1-random")


def test_loads_within_memory_and_computes_sane_numbers(full_size: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(str(full_size), cache=cache)
    normal = torch.Generator().manual_seed(0)
    ids = torch.tensor([[49406, 320, 1125, *[49407] * 74]])
    with torch.no_grad():
        states = load_text_encoder(checkpoint)(ids).last_hidden_state
        unet = load_unet(checkpoint)
        assert sum(weights.numel() for weights in unet.parameters()) == 859_520_964
        noise = unet(torch.randn(1, 4, 64, 64, generator=normal), torch.tensor([500.0]), states).sample
        del unet
        picture = load_vae(checkpoint).decode(noise / checkpoint.vae["scaling_factor"]).sample
    assert states.shape == (1, 77, 768)
    assert 0.5 < noise.std() < 2  # real noise has 1
    assert 0.1 < picture.std() < 1  # a picture over -1..1 has about 0.5
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    assert peak_gib < 12  # the UNet is 3.2 GiB; a decode of 512x512 takes most of the rest


def test_as_a_single_file_it_is_the_same_checkpoint(full_size: Path, tmp_path: Path, cache: Path) -> None:
    file = as_single_file(full_size, tmp_path / "v1.safetensors")
    single = open_checkpoint(str(file), cache=cache)
    folder = open_checkpoint(str(full_size), cache=cache)
    for component in ("text_encoder", "unet", "vae"):
        assert single.weights(component).read_bytes() == folder.weights(component).read_bytes()
    assert single.digest == folder.digest
