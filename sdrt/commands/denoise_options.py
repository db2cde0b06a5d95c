"""The options of ``sdrt denoise``, and what one prompt and a file of prompts derive from them alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.runtime.request import DEFAULT_STRENGTH

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.pipeline import Pipeline
    from sdrt.progress import Progress
    from sdrt.runtime.request import Request
    from sdrt.runtime.result import Timings


@dataclass(frozen=True)
class DenoiseOptions:
    """The options of ``sdrt denoise``, by the names that click gives them."""

    prompt: str | None
    prompts: Path | None
    negative_prompt: str | None
    steps: int | None
    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    deepcache: int | None
    token_merging: float | None
    seed: int | None
    num_images: int | None
    init_image: Path | None
    strength: float | None
    start_step: int | None
    lms_start: str | None
    checkpoint: str | None
    revision: str | None
    variant: str | None
    bundle: Path | None
    engines: Path | None
    trust: str | None
    backend: str | None
    precision: str | None
    latents: Path | None
    save_latents: Path | None
    out: Path
    preview: bool
    preview_dir: Path | None
    repeat: Path | None
    store: Path | None
    build: bool
    threads: int | None
    loop: str
    cuda_graphs: bool | None
    provider: str | None
    keep_loaded: bool
    as_json: bool


def settings(options: DenoiseOptions) -> dict[str, Any]:
    """Return the arguments of `make_request` that follow from the options, without the prompt."""
    strength = options.strength
    if options.init_image is not None and strength is None and options.start_step is None:
        strength = DEFAULT_STRENGTH
    return {
        "negative_prompt": options.negative_prompt,
        "seed": options.seed,
        "num_images_per_prompt": 1 if options.num_images is None else options.num_images,
        "num_inference_steps": 50 if options.steps is None else options.steps,
        "guidance_scale": options.guidance_scale,
        "strength": strength,
        "start_step": options.start_step,
        "lms_start": options.lms_start or "diffusers",
        "guidance_interval": options.guidance_interval,
        "deepcache": options.deepcache,
    }


def init_image(options: DenoiseOptions) -> Image.Image | None:
    """Open and decode the picture of --init-image; None if there is none."""
    if options.init_image is None:
        return None
    from sdrt.runtime.init_image import open_picture

    return open_picture(options.init_image)


def load(options: DenoiseOptions, progress: Progress) -> Pipeline:
    """Load the pipeline that the options describe."""
    from sdrt.pipeline import Pipeline

    return Pipeline.load(
        options.checkpoint,
        revision=options.revision,
        variant=options.variant,
        bundle=options.bundle,
        engines=options.engines,
        trust=options.trust,
        backend=options.backend or "auto",
        precision=options.precision,  # type: ignore[arg-type]
        store=options.store,
        build=options.build,
        threads=options.threads,
        loop=options.loop,
        cuda_graphs=options.cuda_graphs,
        provider=options.provider,  # type: ignore[arg-type]
        deepcache=options.deepcache is not None,
        token_merging=options.token_merging,
        keep_loaded=options.keep_loaded,
        progress=progress,
    )


def say_guidance(pipeline: Pipeline, requests: Iterable[Request], progress: Progress) -> None:
    """Note the checkpoint's guidance scale if a request leaves it open and it is not the usual default."""
    scale = pipeline.model.guidance_scale
    if scale != DEFAULT_GUIDANCE_SCALE and any(request.guidance_left_open for request in requests):
        progress.note(f"guidance scale {scale:g}, as the checkpoint recommends")


def stages(timings: Timings, *, with_encoder: bool) -> dict[str, float]:
    """Return seconds by stage, rounded to four digits; the VAE encoder's only with ``with_encoder``."""
    names = ["load", "text_encoder", "unet", "vae_decoder", "total"]
    if with_encoder:
        names.insert(1, "vae_encoder")
    return {name: round(getattr(timings, name), 4) for name in names}
