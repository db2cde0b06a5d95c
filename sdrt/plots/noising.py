"""A picture drowning in noise: its latents with the scheduler's noise at some steps, each decoded."""

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
#: Pictures that a figure holds at most.
MAX_PANELS = 60


@dataclass(frozen=True)
class Noised:
    """A picture at one step's noise level. ``latents_std`` is over all values of its latents."""

    step: int
    timestep: float
    sigma: float
    latents_std: float
    picture: Image.Image

    def numbers(self) -> dict[str, Any]:
        """What --json says of it."""
        return {
            "step": self.step,
            "timestep": self.timestep,
            "sigma": self.sigma,
            "latents_std": round(self.latents_std, 6),
        }


def shown_steps(num_inference_steps: int, every: int) -> list[int]:
    """Steps 0, every, 2 * every, ... of a schedule.

    Raises:
        UsageError: They are more than a figure holds.
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
    """Encode a picture once, add the seed's noise at every so many steps, decode each.

    Args:
        model: Whose VAE and schedule.
        sample: [1,3,512,512] in -1..1.
        seed: Of the noise, the same at each step.
        num_inference_steps: Of the schedule.
        every: Steps between two pictures.
        progress: Told of each picture.

    Raises:
        UsageError: There would be too many pictures.
        NumericError: The VAE gave NaN or Inf.
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
    """The pictures as a grid, the noisiest first."""
    panels = [Panel(each.picture, f"step {each.step}, sigma {each.sigma:.3g}") for each in found]
    columns = min(COLUMNS, len(panels))
    return picture_grid("A picture under the scheduler\u2019s noise", caption, panels, columns).figure
