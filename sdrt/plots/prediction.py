"""One call of the UNet: noisy latents, the noise that it predicts, and the latents without it, each decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.errors import UsageError
from sdrt.plots.figure import Panel, picture_grid, styled
from sdrt.plots.watch import Step, one_step, watch
from sdrt.sampling import lms

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from sdrt.plots.model import Model
    from sdrt.progress import Progress
    from sdrt.runtime.denoise import Conditioning, Latents
    from sdrt.sampling.lms import Schedule

#: Name in --json -> title in the figure, of the four latents in their order.
TITLES = {
    "noisy": "noisy latents",
    "noise": "predicted noise",
    "noisy_minus_noise": "latents \N{MINUS SIGN} noise",
    "denoised": "latents \N{MINUS SIGN} sigma \N{MULTIPLICATION SIGN} noise",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of one call of the UNet.

    Attributes:
        step: Index of the step, from 0.
        found: Latents and predicted noise of the call.
        pictures: The four latents of `TITLES`, decoded.
        added: The noise [1,4,64,64] that was added to a picture's latents; None if the latents were denoised instead.
    """

    step: int
    found: Step
    pictures: dict[str, Image.Image]
    added: Latents | None

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the figure, as --json prints them.

        These are the step's index, timestep and sigma, the standard deviations of the four latents, and the error of
        the prediction.
        """
        spread = {name: round(float(np.std(values)), 6) for name, values in four(self.found).items()}
        numbers = {
            "step": self.step,
            "timestep": self.found.timestep,
            "sigma": self.found.sigma,
            "std": spread,
            "noise_mse": None,
            "noise_correlation": None,
        }
        if self.added is not None:
            numbers["noise_mse"] = round(float(np.mean((self.found.noise - self.added) ** 2)), 6)
            pair = np.corrcoef(self.found.noise.ravel(), self.added.ravel())
            numbers["noise_correlation"] = round(float(pair[0, 1]), 6)
        return numbers


def four(found: Step) -> dict[str, Latents]:
    """Return the four latents of a figure; the third subtracts the noise without sigma, to show what sigma does."""
    return {
        "noisy": found.latents,
        "noise": found.noise,
        "noisy_minus_noise": found.latents - found.noise,
        "denoised": found.denoised,
    }


def check_step(step: int, num_inference_steps: int) -> None:
    """Raise UsageError unless a schedule with this many steps has the step."""
    if not 0 <= step < num_inference_steps:
        hint = f"--step counts from 0: give 0 to {num_inference_steps - 1}, or more --steps"
        raise UsageError(f"--step {step} is not one of the {num_inference_steps} steps", hint=hint)


def predict(
    model: Model,
    *,
    prompt: str,
    sample: Latents | None,
    step: int,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
    progress: Progress,
) -> Prediction:
    """Compute latents at a step, call the UNet once, and decode the four latents of `TITLES`.

    Args:
        model: Model with the engines.
        prompt: Prompt; may be empty.
        sample: Picture [1,3,512,512] float32 in -1..1 to add noise to; None denoises from noise up to the step.
        step: Index of the step, from 0.
        num_inference_steps: Number of steps of the schedule.
        guidance_scale: Guidance scale of every call; 1 and below turn guidance off.
        seed: Seed of the noise.
        progress: Progress callback for the steps.

    Raises:
        UsageError: The schedule has no such step.
        NumericError: A component returned NaN or Inf.
    """
    check_step(step, num_inference_steps)
    schedule = model.schedule(num_inference_steps)
    conditioning, noise = model.conditioning(prompt, guidance_scale), model.noise(seed)
    if sample is None:
        latents = _denoised_to(model, schedule, step, noise, conditioning, progress)
    else:
        latents = lms.add_noise(model.encode(sample), noise, float(schedule.sigmas[step]))
    found = one_step(model.unet, schedule, step, latents, conditioning)
    with progress.stage("decode", len(TITLES)) as advance:
        pictures = {}
        for name, values in four(found).items():
            pictures[name] = model.decode(values)
            advance(1)
    return Prediction(step, found, pictures, None if sample is None else noise)


def _denoised_to(
    model: Model, schedule: Schedule, step: int, noise: Latents, conditioning: Conditioning, progress: Progress
) -> Latents:
    """Denoise from noise up to the beginning of a step."""
    latents = noise * np.float32(schedule.init_noise_sigma)
    if step == 0:
        return latents
    with progress.stage("denoise", step) as advance:

        def see(found: Step) -> bool:
            advance(1)
            return found.index + 1 < step

        return watch(model.unet, schedule, latents, conditioning, see)


@styled
def draw_prediction(found: Prediction, caption: str) -> Figure:
    """Return a figure of the four pictures side by side."""
    panels = [Panel(found.pictures[name], title) for name, title in TITLES.items()]
    title = f"What the UNet sees at step {found.step}, sigma {found.found.sigma:.3g}"
    return picture_grid(title, caption, panels, len(panels)).figure
