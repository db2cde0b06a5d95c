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
    from sdrt.runtime.pipeline import Pipeline

#: The latents that the map is fitted on are flat in squares of this many latent pixels: pictures are smooth.
PATCH = 8

Show = Callable[[int, Sequence[Image.Image]], None]


@dataclass(frozen=True, eq=False)
class Projection:
    """RGB from latents, pixel by pixel: ``weights`` [channels + 1, 3], the last row for what black latents give."""

    weights: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, pipeline: Pipeline) -> Projection:
        """The map that comes closest, by least squares, to what the pipeline's own decoder makes of smooth latents.

        It costs the decoding of one picture.
        """
        model = pipeline.model
        squares = np.random.default_rng(0).standard_normal((model.latent_channels, *[model.latent_size // PATCH] * 2))
        latents = np.kron(squares, np.ones((PATCH, PATCH))).astype(np.float32)
        (picture,) = pipeline.decode(latents[np.newaxis])
        pipeline.done_with("vae_decoder")
        seen = np.asarray(picture.resize((model.latent_size, model.latent_size), Image.Resampling.BOX), np.float32)
        weights, *_ = np.linalg.lstsq(_columns(latents[np.newaxis]), seen.reshape(-1, 3), rcond=None)
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

    Args:
        projection: From latents to pictures.
        show: Called with the number of steps done and the pictures that are being denoised.
    """

    def __init__(self, projection: Projection, show: Show) -> None:
        self._projection = projection
        self._show = show
        self._before: Latents | None = None

    def __call__(self, pipeline: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> None:
        """Show the latents after a step."""
        latents: Latents = values["latents"]
        if pipeline.schedule is None:
            return
        start, end = (float(sigma) for sigma in pipeline.schedule.sigmas[step : step + 2])
        before = None if step == 0 else self._before
        self._before = latents.copy()
        if end == 0:
            estimate = latents
        elif before is None:
            return
        else:
            estimate = latents - np.float32(end / (end - start)) * (latents - before)
        self._show(step + 1, self._projection.pictures(estimate))


def _columns(latents: Latents) -> npt.NDArray[np.float32]:
    """[n * h * w, channels + 1]: a row a latent pixel, and 1."""
    rows = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
