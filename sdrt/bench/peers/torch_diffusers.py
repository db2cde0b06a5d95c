"""diffusers' StableDiffusionPipeline: in fp32, in half precision with channels-last weights, and compiled."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import logging

from sdrt.bench.contender import Contender, Stopwatch, Work, noise

if TYPE_CHECKING:
    from PIL import Image

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diffusers(Contender):
    """The pipeline with LMS and its default attention, scaled-dot-product.

    In half precision weights are channels-last, as https://huggingface.co/docs/diffusers/optimization/fp16 advises.
    """

    def load(self) -> None:
        """Load the checkpoint's folder."""
        torch.set_num_threads(self.job.threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        # Deprecations between diffusers and transformers cannot be fixed here.
        warnings.simplefilter("ignore")
        path, dtype = Path(self.job.checkpoint), DTYPES[self.job.precision]
        pipeline = StableDiffusionPipeline.from_pretrained(
            path,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            dtype=dtype,
            local_files_only=True,
        )
        config = json.loads((path / "scheduler" / "scheduler_config.json").read_bytes())
        pipeline.scheduler = LMSDiscreteScheduler.from_config(config)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(self.job.device)
        if dtype != torch.float32:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        self._pipeline: Any = pipeline
        self._decode: Callable[..., Any] = pipeline.vae.decode
        self._encode: Callable[..., Any] = pipeline.encode_prompt

    def _timed(self, watch: Stopwatch, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its calls are timed as a stage.

        On a GPU, where calls only queue work, it waits before and after the call, so that the time is the call's own.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            self._finish()
            with watch.stage(stage):
                made = function(*args, **kwargs)
                self._finish()
            return made

        return call

    def _finish(self) -> None:
        """Wait for the work queued on the GPU."""
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Draw in one call; the time that is neither text encoding nor decoding counts for the UNet."""
        pipeline = self._pipeline
        config = pipeline.unet.config
        latents = torch.from_numpy(noise(work, (config.in_channels, config.sample_size, config.sample_size)))
        pipeline.encode_prompt = self._timed(watch, "text_encoder", self._encode)
        pipeline.vae.decode = self._timed(watch, "vae_decoder", self._decode)

        def step_ended(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            watch.step_ended()
            return values

        with watch.stage("whole"):
            made = pipeline(
                list(work.prompts),
                num_inference_steps=work.steps,
                guidance_scale=work.guidance_scale,
                latents=latents.to(self.job.device, DTYPES[self.job.precision]),
                callback_on_step_end=step_ended if work.watch else None,
                output_type="pil",
            )
        seconds = watch.seconds
        seconds["unet"] = seconds["whole"] - seconds["text_encoder"] - seconds["vae_decoder"]
        pictures: Sequence[Image.Image] = made.images
        return pictures

    def device_bytes(self) -> int | None:
        """Return the peak memory that torch allocated on the GPU; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.job.device == "cuda" else None


class CompiledDiffusers(Diffusers):
    """The same with the UNet and the VAE decoder compiled by TorchInductor, for the shapes of each call."""

    def load(self) -> None:
        """Load the pipeline and mark it for compilation, which happens in the first run."""
        super().load()
        self._pipeline.unet = torch.compile(self._pipeline.unet)
        self._decode = torch.compile(self._decode)
