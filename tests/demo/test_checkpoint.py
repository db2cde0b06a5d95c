"""The committed checkpoint: small, fp16, Stable Diffusion v1, and readable by diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import sdrt
from demo.assemble import RECOMMENDED_GUIDANCE_SCALE, write_checkpoint
from sdrt.checkpoint import open_checkpoint

CHECKPOINT = Path(sdrt.__file__).parent / "assets" / "demo-checkpoint"
PARTS = ("text_encoder", "unet", "vae")
# diffusers 0.42's LMS scheduler converts tensors in a way that numpy 2 deprecates.
NUMPY_1 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_it_is_at_most_40_mb() -> None:
    size = sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file())
    assert size <= 40e6


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_fp16_safetensors(part: str) -> None:
    (path,) = (CHECKPOINT / part).glob("*.safetensors")
    with safe_open(path, "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_its_scheduler_is_sd_v1s_with_lms() -> None:
    config = json.loads((CHECKPOINT / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "LMSDiscreteScheduler"
    asked = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    assert {name: config[name] for name in asked} == asked
    assert config["prediction_type"] == "epsilon"


def test_sdrt_opens_it() -> None:
    checkpoint = open_checkpoint("demo")
    # Newly trained checkpoints recommend the same.
    assert checkpoint.guidance_scale == RECOMMENDED_GUIDANCE_SCALE
    assert checkpoint.name == "demo"
    assert checkpoint.unet["sample_size"] == 64


@NUMPY_1
def test_what_is_trained_is_written_in_fp16_with_what_it_recommends(tiny_path: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    write_checkpoint(StableDiffusionPipeline.from_pretrained(tiny_path), tmp_path / "checkpoint")
    checkpoint = open_checkpoint(str(tmp_path / "checkpoint"))
    assert checkpoint.guidance_scale == RECOMMENDED_GUIDANCE_SCALE
    with safe_open(checkpoint.weights("unet"), "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118


@NUMPY_1
def test_diffusers_loads_it_unchanged() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT)
    assert type(pipeline.scheduler).__name__ == "LMSDiscreteScheduler"
    assert pipeline.safety_checker is None
    assert pipeline.vae_scale_factor == 8
    # The stored fp16 is for size: parts of different types could not run together.
    assert {part.dtype for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae)} == {torch.float32}
    assert pipeline.tokenizer("a red circle").input_ids[0] == 49406
