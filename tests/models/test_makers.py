"""The makers of test checkpoints keep their promises."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.checkpoint.weights import STEMS, find_weights
from tests.models import odd_checkpoints, tiny_checkpoint
from tests.models.sd_v1_random import is_whole, random_tensor, sd_v1_random, tensor_shapes
from tests.models.tiny import TEXT_ENCODER, UNET, VAE, v1_config

SMALL = {
    "unet": {**v1_config("unet"), **UNET},
    "vae": {**v1_config("vae"), **VAE},
    "text_encoder": {**v1_config("text_encoder"), **TEXT_ENCODER},
}


def test_equal_seeds_give_equal_checkpoints_and_leave_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    folders = [tiny_checkpoint(tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.random.get_rng_state(), before)
    one, same, other = (open_checkpoint(str(folder), cache=tmp_path / "cache").digest for folder in folders)
    assert one == same != other


@pytest.mark.parametrize("name", ["tiny", *odd_checkpoints()])
def test_predicted_noise_and_pictures_are_neither_flat_nor_huge(tmp_path: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / name, **odd_checkpoints().get(name, {}))
    checkpoint = open_checkpoint(str(folder), cache=tmp_path / "cache")
    normal = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 64, 64, generator=normal)
    ids = torch.tensor([[49406, 320, 1125, *[49407] * 74]])
    with torch.no_grad():
        states = load_text_encoder(checkpoint)(ids).last_hidden_state
        noise = load_unet(checkpoint)(latents, torch.tensor([500.0]), states).sample
        picture = load_vae(checkpoint).decode(latents / checkpoint.vae["scaling_factor"]).sample
    assert noise.shape == (1, 4, 64, 64)
    assert picture.shape == (1, 3, 512, 512)
    assert 0.3 < noise.std() < 3  # real noise has 1
    assert 0.1 < picture.std() < 1  # a picture over -1..1 has about 0.5
    assert (picture.abs() > 1).float().mean() < 0.3  # few are clipped


def test_full_size_shapes_are_sd_v1s() -> None:
    counts = {
        component: sum(math.prod(shape) for shape in tensor_shapes(component, v1_config(component)).values())
        for component in STEMS
    }
    assert counts == {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}  # as v1.4's files


def test_random_tensor_depends_on_name_and_seed_only() -> None:
    one, same, seed, name = (
        bytes(random_tensor(key, (64, 8, 3, 3), number)) for key, number in (("a", 0), ("a", 0), ("a", 1), ("b", 0))
    )
    assert one == same
    assert len({one, seed, name}) == 3
    values = np.frombuffer(one, "<f4")
    assert abs(values.std() * math.sqrt(8 * 9) - 1) < 0.05  # 4,608 draws: the deviation's own is 1%


def test_random_checkpoint_is_written_once_whole_and_loadable(tmp_path: Path) -> None:
    out = sd_v1_random(tmp_path / "random", configs=SMALL)
    checkpoint = open_checkpoint(str(out), cache=tmp_path / "cache")
    assert load_unet(checkpoint).config.cross_attention_dim == 32
    assert load_vae(checkpoint).config.latent_channels == 4
    assert load_text_encoder(checkpoint).config.hidden_size == 32
    weights = find_weights(out, "unet")
    stamp = weights.stat().st_mtime_ns
    sd_v1_random(out, configs=SMALL)
    assert weights.stat().st_mtime_ns == stamp
    first = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the result is memory-mapped
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_whole(out)
    again = load_file(find_weights(sd_v1_random(out, configs=SMALL), "unet"))
    assert all(torch.equal(first[key], again[key]) for key in first)
