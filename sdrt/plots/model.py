"""A checkpoint's engines, run one call at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sdrt.arrays import check_finite
from sdrt.progress import Progress, silent
from sdrt.runtime import images
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.opening import open_session
from sdrt.runtime.denoise import Conditioning, Latents
from sdrt.runtime.text import Tokenizer
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Schedule

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.prepare.source import Source


class Model:
    """The engines of one checkpoint, each opened when it is first needed. Not safe to share between threads."""

    def __init__(self, engines: EngineSet, progress: Progress = silent, *, threads: int | None = None) -> None:
        self.engines = engines
        self.record = engines.manifest.model
        self.tokenizer = Tokenizer.open(engines.tokenizer, self.record.max_tokens)
        self._scheduler: dict[str, Any] = json.loads(engines.scheduler.read_bytes())
        self._session = open_session(engines, threads=threads, progress=progress)

    @classmethod
    def load(cls, source: Source, *, backend: str, store: Path | None, progress: Progress = silent) -> Model:
        """Open a source's engines, exporting and building them first if they are missing.

        A record of ``sdrt tune`` sets backend, precision and threads. Its batch and its loop are not used: figures need
        one picture, and the steps of the plain loop.

        Args:
            source: Checkpoint, bundle or engine set.
            backend: Name of a backend, or auto.
            store: Store of bundles and engines; None is the user's.
            progress: Progress callback.

        Raises:
            SdrtError: The engines cannot be exported, built or opened.
        """
        from sdrt.prepare.choice import choose
        from sdrt.prepare.engines import prepare

        choice = choose(source, backend=backend, store=store, progress=progress)
        alone = replace(choice, batch=None, loop="plain", fused=False)
        engines = prepare(source, alone, store=store, progress=progress)
        return cls(engines, progress=progress, threads=choice.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def unet(self) -> Engine:
        """The plain UNet."""
        return self._session.engine("unet")

    @property
    def described(self) -> str:
        """Checkpoint, backend and precision, for the caption of a figure."""
        manifest = self.engines.manifest
        return f"checkpoint {self.engines.checkpoint.name}, {manifest.backend} {manifest.precision}"

    def facts(self) -> dict[str, Any]:
        """Return checkpoint, backend and precision, as --json prints them."""
        manifest = self.engines.manifest
        return {
            "checkpoint": self.engines.checkpoint.model_dump(mode="json"),
            "backend": manifest.backend,
            "precision": manifest.precision,
        }

    def guidance_scale(self, requested: float | None) -> float:
        """Return the requested guidance scale, or the checkpoint's if it is None."""
        return self.record.guidance_scale if requested is None else requested

    def schedule(self, num_inference_steps: int) -> Schedule:
        """Return the checkpoint's schedule.

        Raises:
            UsageError: The checkpoint was trained on fewer timesteps.
            ArtefactError: The config of the scheduler has settings that LMS does not support.
        """
        return Schedule.from_config(self._scheduler, num_inference_steps)

    def noise(self, seed: int) -> Latents:
        """Return the unit noise [1,4,64,64] float32 of a seed, as `sdrt denoise` draws it."""
        return unit_noise([seed], (self.record.latent_channels, self.record.latent_size, self.record.latent_size))

    def conditioning(self, prompt: str, guidance_scale: float) -> Conditioning:
        """Encode a prompt, and the empty prompt too if guidance is on (above 1).

        Raises:
            UsageError: The prompt is too long or not valid text.
        """
        states = self._states(prompt)
        return Conditioning(states, self._states("") if guidance_scale > 1 else None, guidance_scale)

    def _states(self, text: str) -> Latents:
        ids = self.tokenizer.encode([text]).input_ids
        return self._run("text_encoder", "last_hidden_state", input_ids=ids)

    def encode(self, sample: Latents) -> Latents:
        """Return the scaled latents [1,4,64,64] of a picture [1,3,512,512] in -1..1: the mean of their distribution.

        Raises:
            NumericError: The encoder returned NaN or Inf.
        """
        moments = self._run("vae_encoder", "latent_parameters", sample=sample)
        mean, _ = np.split(moments, 2, axis=1)
        return mean * np.float32(self.record.scaling_factor)

    def decode(self, latents: Latents) -> Image.Image:
        """Decode scaled latents [1,4,64,64] to a picture.

        Raises:
            NumericError: The decoder returned NaN or Inf.
        """
        unscaled = latents / np.float32(self.record.scaling_factor)
        (picture,) = images.to_pictures(self._run("vae_decoder", "sample", latent_sample=unscaled))
        return picture

    def _run(self, component: ComponentName, output: str, **feeds: Any) -> Latents:
        """Run a component, with float32 inputs and output whatever the engine's precision."""
        engine = self._session.engine(component)
        dtypes = {spec.name: spec.dtype for spec in engine.spec.inputs}
        given = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
        found: Latents = engine.run(**given)[output].astype(np.float32, copy=False)
        check_finite(found, component)
        return found
