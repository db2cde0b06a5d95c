"""A picture under growing noise: its latents with the scheduler's noise at some steps, each decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.errors import UsageError
from sdrt.plots.figure import Panel, picture_grid, styled
from sdrt.sampling import lms

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from sdrt.plots.model import Model
    from sdrt.progress import Progress
    from sdrt.runtime.denoise import Latents

COLUMNS = 3
#: Maximum number of pictures in a figure.
MAX_PANELS = 60


@dataclass(frozen=True)
class Noised:
    """A picture at one step's noise level. ``latents_std`` is the standard deviation of its latents."""

    step: int
    timestep: float
    sigma: float
    latents_std: float
    picture: Image.Image

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the step, as --json prints them."""
        return {
            "step": self.step,
            "timestep": self.timestep,
            "sigma": self.sigma,
            "latents_std": round(self.latents_std, 6),
        }


def shown_steps(num_inference_steps: int, every: int) -> list[int]:
    """Return the steps 0, every, 2 * every, ... of a schedule.

    Raises:
        UsageError: There are more than `MAX_PANELS`.
    """
    steps = list(range(0, num_inference_steps, every))
    if len(steps) > MAX_PANELS:
        least = -(-num_inference_steps // MAX_PANELS)
        message = f"--every {every} of {num_inference_steps} steps makes {len(steps)} pictures; {MAX_PANELS} fit"
        raise UsageError(message, hint=f"give --every {least} or more")
    return steps


def noise_picture(
    model: Model, sample: Latents, *, seed: int, num_inference_steps: int, every: int, progress: Progress
) -> list[Noised]:
    """Encode a picture once, add noise at the level of every ``every``-th step, and decode each.

    Args:
        model: Model with the VAE and the schedule.
        sample: Picture [1,3,512,512] float32 in -1..1.
        seed: Seed of the noise, which is the same at each step.
        num_inference_steps: Number of steps of the schedule.
        every: Steps from one picture to the next.
        progress: Progress callback for the pictures.

    Raises:
        UsageError: There would be more pictures than `MAX_PANELS`.
        NumericError: The VAE returned NaN or Inf.
    """
    schedule = model.schedule(num_inference_steps)
    steps = shown_steps(num_inference_steps, every)
    latents, noise = model.encode(sample), model.noise(seed)
    found = []
    with progress.stage("decode", len(steps)) as advance:
        for step in steps:
            sigma = float(schedule.sigmas[step])
            noisy = lms.add_noise(latents, noise, sigma)
            picture = model.decode(noisy)
            found.append(Noised(step, float(schedule.timesteps[step]), sigma, float(np.std(noisy)), picture))
            advance(1)
    return found


@styled
def draw_noising(found: list[Noised], caption: str) -> Figure:
    """Return a figure of the pictures as a grid, the noisiest first."""
    panels = [Panel(each.picture, f"step {each.step}, sigma {each.sigma:.3g}") for each in found]
    columns = min(COLUMNS, len(panels))
    return picture_grid("A picture under the scheduler\u2019s noise", caption, panels, columns).figure
