"""The denoising loop, observed step by step: the latents before each step, and the noise that the UNet predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdrt.arrays import Array
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.denoise import Conditioning, Latents, denoise
from sdrt.sampling import lms
from sdrt.sampling.lms import Schedule


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the loop.

    Attributes:
        index: Index from 0, counted from the first step that was run.
        timestep: Timestep that the UNet was given.
        sigma: Noise level before the step.
        latents: Latents [n,4,64,64] before the step.
        noise: Noise [n,4,64,64] of unit variance that the UNet predicts for them, with guidance.
    """

    index: int
    timestep: float
    sigma: float
    latents: Latents
    noise: Latents

    @property
    def denoised(self) -> Latents:
        """The denoised estimate: latents - sigma * noise (Karras et al. 2022, equation 1)."""
        return self.latents - np.float32(self.sigma) * self.noise


class _Kept(Engine):
    """An engine that keeps its last output."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.name, engine.spec)
        self._engine = engine
        self.output: Latents = np.empty((0,), np.float32)

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the engine."""
        outputs = self._engine.run(**feeds)
        self.output = outputs["out_sample"].astype(np.float32, copy=False)
        return outputs

    def release(self) -> None:
        """Do nothing: the caller owns the engine."""


def watch(
    unet: Engine, schedule: Schedule, latents: Latents, conditioning: Conditioning, see: Callable[[Step], bool]
) -> Latents:
    """Run the runtime's denoising loop and report its steps.

    Args:
        unet: An engine of the UNet.
        schedule: Schedule to run.
        latents: Latents [n,4,64,64] at the first sigma.
        conditioning: Hidden states of the prompts, and the guidance scale.
        see: Called after each step; returns whether to continue.

    Returns:
        The latents [n,4,64,64] after the last step that was run.

    Raises:
        NumericError: The UNet's output or the latents hold NaN or Inf.
    """
    kept = _Kept(unet)
    before = latents

    def on_step(index: int, timestep: float, following: Latents) -> Latents | None:
        nonlocal before
        sigma = float(schedule.sigmas[index])
        output = conditioning.combine(kept.output)
        # The derivative that LMS integrates is the noise, whatever the UNet's prediction type.
        noise = lms.derivative(before, output, sigma, schedule.prediction_type)
        go_on = see(Step(index, timestep, sigma, before, noise))
        before = following
        return following if go_on else None

    return denoise(kept, schedule, latents, conditioning, on_step)


def one_step(unet: Engine, schedule: Schedule, step: int, latents: Latents, conditioning: Conditioning) -> Step:
    """Call the UNet once, for latents at a step of the schedule.

    Args:
        unet: An engine of the UNet.
        schedule: The whole schedule.
        step: Index of the step, from 0.
        latents: Latents [n,4,64,64] at the step's sigma.
        conditioning: Hidden states of the prompts, and the guidance scale.

    Raises:
        NumericError: The UNet's output holds NaN or Inf.
    """
    seen: list[Step] = []

    def keep(found: Step) -> bool:
        seen.append(found)
        return False

    watch(unet, schedule.starting_at(step, fresh=True), latents, conditioning, keep)
    return seen[0]
