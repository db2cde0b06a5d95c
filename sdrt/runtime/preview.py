"""Cheap pictures of latents while they are denoised, by a linear map from latent channels to RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrt.runtime.denoise import Latents

if TYPE_CHECKING:
    from sdrt.runtime.callbacks import RunningPipeline

Show = Callable[[int, Sequence[Image.Image]], None]


@dataclass(frozen=True, eq=False)
class Projection:
    """RGB from latents, pixel by pixel: ``weights`` [channels + 1, 3], the last row for what zero latents give."""

    weights: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, latents: Latents, pictures: Sequence[Image.Image]) -> Projection:
        """The map that comes closest, by least squares, to what a decoder made of latents [n,channels,h,w]."""
        size = latents.shape[:1:-1]
        small = [np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32) for picture in pictures]
        weights, *_ = np.linalg.lstsq(_columns(latents), np.stack(small).reshape(-1, 3), rcond=None)
        return cls(weights.astype(np.float32))

    def pictures(self, latents: Latents) -> list[Image.Image]:
        """RGB pictures of scaled latents [n,channels,h,w], a pixel a latent pixel."""
        count, _, height, width = latents.shape
        levels = np.rint(np.clip(_columns(latents) @ self.weights, 0, 255)).astype(np.uint8)
        return [Image.fromarray(rows) for rows in levels.reshape(count, height, width, 3)]


class Preview:
    """A callback_on_step_end that shows the picture which each step would end at.

    Latents on their way are mostly noise. What is shown is the estimate of the noiseless latents, taken from two steps:
    the derivative between them, followed to sigma 0. So the first step shows nothing, unless it is the last.

    The map from latents to pictures is fitted to what the pipeline's decoder makes of the estimate itself, when the
    first is shown and once more halfway (docs/decisions/0061).

    Args:
        show: Called with the number of steps done and the pictures that are being denoised.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._before: Latents | None = None
        self._projection: Projection | None = None

    def __call__(self, pipeline: RunningPipeline, step: int, _timestep: float, values: dict[str, Any]) -> None:
        """Show the latents after a step."""
        if step == 0:
            # Other pictures begin.
            self._before, self._projection = None, None
        latents: Latents = values["latents"]
        estimate = self._estimate(pipeline, step, latents)
        self._before = latents.copy()
        if estimate is None or pipeline.schedule is None:
            return
        halfway = step == pipeline.schedule.num_inference_steps // 2
        if self._projection is None or halfway:
            self._projection = Projection.fit(estimate, pipeline.decode(estimate))
            pipeline.unload("vae_decoder")
        self._show(step + 1, self._projection.pictures(estimate))

    def _estimate(self, pipeline: RunningPipeline, step: int, latents: Latents) -> Latents | None:
        """The noiseless latents that the last step leads to; None where nothing says."""
        if pipeline.schedule is None:
            return None
        start, end = (float(sigma) for sigma in pipeline.schedule.sigmas[step : step + 2])
        if end == 0:
            return latents
        if self._before is None:
            return None
        return latents - np.float32(end / (end - start)) * (latents - self._before)


def _columns(latents: Latents) -> npt.NDArray[np.float32]:
    """[n * h * w, channels + 1]: a row a latent pixel, and 1."""
    rows = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
