"""Records as the pipeline writes them."""

from __future__ import annotations

from typing import Any


def picture_record(prompt: str = "a cat", negative_prompt: str = "", seed: int = 7, **changes: Any) -> dict[str, Any]:
    """Return the record of one picture, with some fields changed."""
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "guidance_interval": None,
        "deepcache": None,
        "token_merging": None,
        "scheduler": "LMS",
        "checkpoint": {"name": "demo", "digest": "ab" * 32, "revision": None},
        "backend": "onnxruntime",
        "precision": "fp32",
        "engines": "cd" * 32,
        "loop": "plain",
        "provider": "cpu",
        "cuda_graphs": None,
        "threads": 2,
        "init_image": None,
        "start_step": None,
        "lms_start": None,
        "stopped_after": None,
        "size": [512, 512],
        "latents_given": False,
        "batch": [[prompt, negative_prompt, seed]],
        "batch_index": 0,
        **changes,
    }
