"""ONNX Runtime with default options on the exported graphs, and NumPy between them: the straightforward script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from sdrt.bench.contender import Contender, Stopwatch, Work, noise
from sdrt.runtime.images import to_pictures
from sdrt.runtime.text import Tokenizer
from sdrt.sampling import lms
from sdrt.sampling.lms import Schedule

if TYPE_CHECKING:
    from PIL import Image


class PlainOnnxRuntime(Contender):
    """One session a graph; all prompts, both halves of guidance and all pictures run as one batch each."""

    def load(self) -> None:
        """Open the sessions, which optimises the graphs."""
        folder = Path(self.job.bundle)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        self._model = manifest["model"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        options.log_severity_level = 3
        self._sessions = {
            name: onnxruntime.InferenceSession(
                folder / manifest["components"][name]["graph"], options, providers=["CPUExecutionProvider"]
            )
            for name in ("text_encoder", "unet", "vae_decoder")
        }
        self._tokenizer = Tokenizer.open(folder / "tokenizer/tokenizer.json", self._model["max_tokens"])
        self._scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_bytes())

    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Encode, denoise with guidance, decode."""
        model, sessions, n = self._model, self._sessions, len(work.prompts)
        schedule = Schedule.from_config(self._scheduler, work.steps)
        with watch.stage("text_encoder"):
            ids = self._tokenizer.encode(["", *work.prompts]).input_ids
            (states,) = sessions["text_encoder"].run(["last_hidden_state"], {"input_ids": ids})
            hidden = np.concatenate([np.repeat(states[:1], n, axis=0), states[1:]])
        with watch.stage("unet"):
            shape = (model["latent_channels"], model["latent_size"], model["latent_size"])
            latents = noise(work, shape) * np.float32(schedule.init_noise_sigma)
            history: list[np.ndarray] = []
            for index in range(work.steps):
                sigma = float(schedule.sigmas[index])
                scaled = lms.scale_model_input(latents, sigma)
                feeds = {
                    "sample": np.concatenate([scaled, scaled]),
                    "timestep": np.full(2 * n, schedule.timesteps[index], np.float32),
                    "encoder_hidden_states": hidden,
                }
                (output,) = sessions["unet"].run(["out_sample"], feeds)
                uncond, cond = np.split(output, 2)
                guided = uncond + np.float32(work.guidance_scale) * (cond - uncond)
                history = [lms.derivative(latents, guided, sigma, schedule.prediction_type), *history[:3]]
                latents = lms.step(latents, tuple(history), schedule.coefficients[index])
                watch.step_ended()
        with watch.stage("vae_decoder"):
            unscaled = latents / np.float32(model["scaling_factor"])
            (sample,) = sessions["vae_decoder"].run(["sample"], {"latent_sample": unscaled})
            return to_pictures(sample)
