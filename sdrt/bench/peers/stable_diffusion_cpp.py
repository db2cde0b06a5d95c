"""stable-diffusion.cpp by its Python package. It has no LMS: at equal steps its UNet is compared, not its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdrt.bench.contender import Contender, Job, Stopwatch, Work

if TYPE_CHECKING:
    from PIL import Image

#: Precision -> its name in GGML.
TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class StableDiffusionCpp(Contender):
    """Weights in the job's precision, flash attention, Euler steps. Pictures of a batch are drawn one after another."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._library = import_module("stable_diffusion_cpp")

    def load(self) -> None:
        """Load the checkpoint's folder."""
        self._model = self._library.StableDiffusion(
            model_path=self.job.checkpoint,
            n_threads=self.job.threads,
            wtype=TYPES[self.job.precision],
            vae_decode_only=True,
            diffusion_flash_attn=True,
            verbose=False,
        )

    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Draw in one call; the library reports the time of each step."""

        def progress(step: int, steps: int, seconds: float) -> None:
            if steps == work.steps and step > 0:
                watch.seconds["unet"] = watch.seconds.get("unet", 0.0) + seconds
                watch.step_ended()

        options: dict[str, Any] = {"sample_method": "euler", "cfg_scale": work.guidance_scale, "seed": work.seeds[0]}
        pictures: Sequence[Image.Image] = self._model.generate_image(
            work.prompts[0],
            sample_steps=work.steps,
            batch_count=len(work.prompts),
            progress_callback=progress,
            **options,
        )
        return pictures
