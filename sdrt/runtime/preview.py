"""Approximate pictures of latents during denoising, by a linear map from latent channels to RGB."""

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
    """A linear map from latents to RGB: ``weights`` [channels + 1, 3], whose last row is the colour of zero latents."""

    weights: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, latents: Latents, pictures: Sequence[Image.Image]) -> Projection:
        """Fit the map by least squares to the pictures that a decoder made of latents [n,channels,h,w]."""
        size = latents.shape[:1:-1]
        small = [np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32) for picture in pictures]
        weights, *_ = np.linalg.lstsq(_columns(latents), np.stack(small).reshape(-1, 3), rcond=None)
        return cls(weights.astype(np.float32))

    def pictures(self, latents: Latents) -> list[Image.Image]:
        """Return RGB pictures of scaled latents [n,channels,h,w], of h x w pixels each."""
        count, _, height, width = latents.shape
        levels = np.rint(np.clip(_columns(latents) @ self.weights, 0, 255)).astype(np.uint8)
        return [Image.fromarray(rows) for rows in levels.reshape(count, height, width, 3)]


class Preview:
    """A callback_on_step_end that shows an estimate of the final picture after each step.

    Latents during denoising are mostly noise. The noiseless latents are estimated by extrapolating the change between
    two steps to sigma 0. So the first step shows nothing, unless it is the last.

    The map from latents to pictures is fitted to the decoder's picture of the estimate, when the first is shown and
    again halfway (docs/decisions/0061).

    Args:
        show: Called with the number of steps done and the estimated pictures.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._before: Latents | None = None
        self._projection: Projection | None = None

    def __call__(self, pipeline: RunningPipeline, step: int, _timestep: float, values: dict[str, Any]) -> None:
        """Show the latents after a step."""
        if step == 0:
            # A new group of pictures begins.
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
        """Return the estimated noiseless latents; None if there is no schedule or no earlier step."""
        if pipeline.schedule is None:
            return None
        start, end = (float(sigma) for sigma in pipeline.schedule.sigmas[step : step + 2])
        if end == 0:
            return latents
        if self._before is None:
            return None
        return latents - np.float32(end / (end - start)) * (latents - self._before)


def _columns(latents: Latents) -> npt.NDArray[np.float32]:
    """Return the latents as [n * h * w, channels + 1], a row for each latent pixel, with a last column of ones."""
    rows = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
