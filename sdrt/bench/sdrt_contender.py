"""sdrt itself, as a contender."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.bench.contender import Contender, Stopwatch, Work
from sdrt.pipeline import Pipeline
from sdrt.runtime.request import Picture, Request

if TYPE_CHECKING:
    from PIL import Image


class SdrtContender(Contender):
    """An engine set run by the pipeline, as by ``sdrt denoise --engines``."""

    def load(self) -> None:
        """Open the engines; nothing is built."""
        job = self.job
        self._pipeline = Pipeline.load(
            engines=Path(job.engines),
            store=Path(job.store),
            build=False,
            threads=job.threads,
            loop=job.loop,
            keep_loaded=job.keep_loaded,
        )

    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Run one request; the times of the stages are the pipeline's."""
        rows = zip(work.prompts, work.seeds, strict=True)
        request = Request(tuple(Picture(prompt, "", seed) for prompt, seed in rows), work.steps, work.guidance_scale)

        def step_ended(_pipeline: Pipeline, _step: int, _timestep: float, _values: dict[str, Any]) -> None:
            watch.step_ended()

        result = self._pipeline.run(request, callback_on_step_end=step_ended if work.watch else None)
        for stage in ("text_encoder", "unet", "vae_decoder"):
            watch.seconds[stage] = getattr(result.timings, stage)
        return result.images

    def device_bytes(self) -> int | None:
        """Return the bytes that the backend holds on the GPU; None on a CPU."""
        held = self._pipeline.device_bytes
        return held["total"] if held else None
