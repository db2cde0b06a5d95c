"""diffusers' pipeline as the reference, and the distance of a picture from it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Latents = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


def diffusers_pipeline(checkpoint: Path) -> Any:
    """Open StableDiffusionPipeline in fp32 on the CPU, with LMSDiscreteScheduler over the checkpoint's betas."""
    import torch
    from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        # Deprecations between diffusers and transformers are not sdrt's.
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(
            checkpoint,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            dtype=torch.float32,
        )
        config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_bytes())
        pipeline.scheduler = LMSDiscreteScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_picture(
    pipeline: Any, prompt: str, negative_prompt: str, noise: Latents, steps: int, guidance_scale: float
) -> Picture:
    """Draw diffusers' picture of unit noise [1,4,64,64], as uint8 [h,w,3]."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pipeline(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            latents=torch.from_numpy(noise),
            output_type="pil",
        )
    return np.asarray(made.images[0])


def psnr(actual: Picture, expected: Picture) -> float:
    """Compute the peak signal-to-noise ratio in dB of uint8 pictures; Inf if they are equal."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.uint8
    error = np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def assert_has_contrast(picture: Picture) -> None:
    """Reject a picture of one colour, or all black and white: almost any picture would have a high PSNR against it."""
    assert picture.std() > 15, f"standard deviation {picture.std():.1f}"
    clipped = np.mean((picture == 0) | (picture == 255))
    assert clipped < 0.6, f"{clipped:.0%} of the values are clipped"
