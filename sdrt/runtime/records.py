"""What repeats a picture, as its PNG carries it; sdrt.runtime.metadata says what the fields mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.runtime.request import Picture, Request


def picture_record(
    engines: EngineSet, request: Request, group: Sequence[Picture], index: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of one picture.

    Args:
        engines: What ran.
        request: What was asked.
        group: The pictures that were denoised together.
        index: Which of them this is.
        facts: What else the run has to say.
    """
    picture, manifest = group[index], engines.manifest
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_interval": request.guidance_interval,
        "deepcache": request.deepcache,
        "token_merging": manifest.token_merging,
        "scheduler": "LMS",
        "checkpoint": engines.checkpoint.model_dump(mode="json"),
        "backend": manifest.backend,
        "precision": manifest.precision,
        "engines": engines.digest,
        "size": [manifest.model.image_size, manifest.model.image_size],
        "start_step": request.start_step,
        "lms_start": None if request.start_step is None else request.lms_start,
        **facts,
        "batch": [[p.prompt, p.negative_prompt, p.seed] for p in group],
        "batch_index": index,
    }
