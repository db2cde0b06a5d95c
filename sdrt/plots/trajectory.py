"""A picture emerging from noise: the denoised estimates at some steps, decoded, and norms by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.errors import UsageError
from sdrt.files import write_atomically
from sdrt.plots.figure import Panel, picture_grid, styled
from sdrt.plots.noising import shown_steps
from sdrt.plots.watch import Step, watch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from sdrt.plots.model import Model
    from sdrt.progress import Progress

COLUMNS = 4
NORMS_HEIGHT = 3.0
FRAME_MS, LAST_FRAME_MS = 250, 2000
ANIMATIONS = {".gif": "GIF", ".png": "PNG"}


@dataclass(frozen=True)
class Shown:
    """The denoised estimate at one step, decoded."""

    step: int
    sigma: float
    picture: Image.Image


@dataclass(frozen=True)
class DenoisingHistory:
    """The steps of one picture.

    Attributes:
        steps: For each step its index, timestep and sigma, and the L2 norms of the latents before it, of the predicted
            noise and of the denoised estimate.
        shown: Denoised estimates at some of the steps, decoded.
        final: The finished picture.
        values: Number of values of the latents.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    final: Image.Image | None = None
    values: int = 0

    @property
    def frames(self) -> list[Image.Image]:
        """The frames of an animation; the finished picture is the last."""
        return [each.picture for each in self.shown] + ([self.final] if self.final else [])


def follow(
    model: Model,
    *,
    prompt: str,
    num_inference_steps: int,
    guidance_scale: float,
    every: int,
    seed: int,
    progress: Progress,
) -> DenoisingHistory:
    """Denoise a prompt with the plain UNet, and record the norms of every step and some estimates.

    Args:
        model: Model with the engines.
        prompt: Prompt; may be empty.
        num_inference_steps: Number of steps.
        guidance_scale: Guidance scale; 1 and below turn guidance off.
        every: Steps from one decoded estimate to the next.
        seed: Seed of the noise.
        progress: Progress callback.

    Raises:
        UsageError: There would be too many pictures.
        NumericError: A component returned NaN or Inf.
    """
    schedule = model.schedule(num_inference_steps)
    decoded = set(shown_steps(num_inference_steps, every))
    noise = model.noise(seed)
    steps: list[dict[str, Any]] = []
    estimates: list[Step] = []
    with progress.stage("denoise", num_inference_steps) as advance:

        def see(found: Step) -> bool:
            steps.append(_numbers(found))
            if found.index in decoded:
                estimates.append(found)
            advance(1)
            return True

        latents = noise * np.float32(schedule.init_noise_sigma)
        final = watch(model.unet, schedule, latents, model.conditioning(prompt, guidance_scale), see)
    with progress.stage("decode", len(estimates) + 1) as advance:
        shown = []
        for found in estimates:
            shown.append(Shown(found.index, found.sigma, model.decode(found.denoised)))
            advance(1)
        picture = model.decode(final)
    return DenoisingHistory(steps, shown, picture, noise.size)


def _numbers(found: Step) -> dict[str, Any]:
    """Return a step's index, timestep, sigma and norms."""
    norms = {"latents": found.latents, "noise": found.noise, "denoised": found.denoised}
    return {
        "step": found.index,
        "timestep": found.timestep,
        "sigma": found.sigma,
        **{f"{name}_norm": round(float(np.linalg.norm(values)), 4) for name, values in norms.items()},
    }


@styled
def draw_trajectory(found: DenoisingHistory, prompt: str, caption: str) -> Figure:
    """Return a figure of the estimates and the finished picture as a grid, with the norms by step below it."""
    panels = [Panel(each.picture, f"step {each.step}, sigma {each.sigma:.3g}") for each in found.shown]
    if found.final is not None:
        panels.append(Panel(found.final, "finished"))
    columns = min(COLUMNS, len(panels))
    title = f"The denoised estimate on the way to {prompt}"
    grid = picture_grid(title, caption, panels, columns, below=NORMS_HEIGHT)
    if grid.below is not None:
        _norms(grid.below, found)
    return grid.figure


def _norms(axes: Axes, found: DenoisingHistory) -> None:
    """Plot each norm over the steps."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    steps = [each["step"] for each in found.steps]
    for name, label in (("latents", "latents"), ("noise", "predicted noise"), ("denoised", "denoised estimate")):
        axes.plot(steps, [each[f"{name}_norm"] for each in found.steps], marker="o", markersize=2.5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.set_xlabel("sampling step")
    axes.set_ylabel(f"L2 norm of {found.values} values")
    axes.set_title(f"unit noise has a norm of {np.sqrt(found.values):.0f}", loc="left")
    axes.legend()


def check_animation(path: Path) -> None:
    """Raise UsageError unless the path of an animation ends in .gif or .png."""
    if path.suffix.lower() not in ANIMATIONS:
        message = f"--animation: {str(path)!r} ends in neither .gif nor .png"
        raise UsageError(message, hint="the suffix sets the format: use .gif or .png")


def write_animation(frames: list[Image.Image], path: Path) -> None:
    """Write a looping GIF or PNG that pauses on the last frame; whole or not at all.

    Args:
        frames: Pictures of equal size.
        path: File to write, .gif or .png.

    Raises:
        ResourceError: The file cannot be written.
    """
    stream = BytesIO()
    first, *others = frames
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    kind = ANIMATIONS[path.suffix.lower()]
    first.save(stream, kind, save_all=True, append_images=others, duration=durations, loop=0)
    write_atomically(path, stream.getvalue())
