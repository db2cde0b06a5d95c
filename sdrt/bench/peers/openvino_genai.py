"""openvino-genai's Text2ImagePipeline. It has no LMS: at equal steps its UNet is compared, not its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from PIL import Image

from sdrt.bench.contender import Contender, Job, Stopwatch, Work
from sdrt.libraries.openvino import INFERENCE_PRECISION, load_library


class OpenVinoGenAi(Contender):
    """The pipeline on the CPU, with one stream, in the job's precision."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # OpenVINO first: openvino_genai would import it with telemetry on.
        load_library()
        self._library = import_module("openvino_genai")

    def load(self) -> None:
        """Open and compile the converted models; shapes stay dynamic."""
        properties = {
            "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[self.job.precision],
            "INFERENCE_NUM_THREADS": self.job.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._pipeline = self._library.Text2ImagePipeline(self.job.prepared, "CPU", **properties)

    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Draw in one call, and read the stages from the library's counters. A batch repeats one prompt."""

        def step_ended(_step: int, _steps: int, _latents: Any) -> bool:
            watch.step_ended()
            return False

        made = self._pipeline.generate(
            work.prompts[0],
            num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale,
            num_images_per_prompt=len(work.prompts),
            rng_seed=work.seeds[0] % 2**31,
            **({"callback": step_ended} if work.watch else {}),
        )
        metrics = self._pipeline.get_performance_metrics()
        watch.seconds["unet"] = work.steps * metrics.get_iteration_duration().mean / 1e3
        watch.seconds["text_encoder"] = sum(metrics.get_text_encoder_infer_duration().values()) / 1e3
        watch.seconds["vae_decoder"] = metrics.get_vae_decoder_infer_duration() / 1e3
        return [Image.fromarray(picture) for picture in made.data]
