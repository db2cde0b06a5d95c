"""The denoising loops: LMS with classifier-free guidance over any engine of the UNet, or of the whole guided step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from sdrt.arrays import Array, check_finite
from sdrt.errors import UsageError
from sdrt.runtime.backends.base import Engine
from sdrt.sampling import lms
from sdrt.sampling.lms import Schedule

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineComponent

Latents = npt.NDArray[np.float32]
#: Called after each step with (step, timestep, latents); returns the latents to continue with, or None to stop.
OnStep = Callable[[int, float, Latents], "Latents | None"]


class Unet(Protocol):
    """An engine of the UNet, or `sdrt.runtime.deepcache.CachedUnet` in its place."""

    @property
    def spec(self) -> EngineComponent:
        """The spec, with the types of sample, timestep and encoder_hidden_states."""

    def run(self, **feeds: Array) -> dict[str, Array]:
        """Run once, and return out_sample by name."""


def keep(_step: int, _timestep: float, latents: Latents) -> Latents:
    """Return the latents unchanged."""
    return latents


@dataclass(frozen=True)
class Conditioning:
    """Hidden states of the prompts [n,tokens,hidden], and with guidance of the negative prompts.

    With a ``guidance_interval`` (low, high) guidance is on only in steps with low < sigma <= high (Kynkäänniemi et al.
    2024, arXiv:2404.07724, section 3).
    """

    prompt_embeds: npt.NDArray[np.float32]
    negative_prompt_embeds: npt.NDArray[np.float32] | None
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None

    def guided_at(self, sigma: float) -> bool:
        """Return whether a step at this sigma is guided, and so runs both halves."""
        if self.negative_prompt_embeds is None:
            return False
        low, high = self.guidance_interval or (-math.inf, math.inf)
        return low < sigma <= high

    def batch(self) -> npt.NDArray[np.float32]:
        """Return the hidden states for the UNet: [n,...], or [2n,...] with the negative half first."""
        if self.negative_prompt_embeds is None:
            return self.prompt_embeds
        return np.concatenate([self.negative_prompt_embeds, self.prompt_embeds])

    def combine(self, output: Latents) -> Latents:
        """Return the guided output of n pictures; an output of n rows, from a step without guidance, is unchanged.

        Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, equation 6, with 1 + w = guidance_scale).
        """
        if len(output) == len(self.prompt_embeds):
            return output
        unconditional, conditional = np.split(output, 2)
        return unconditional + np.float32(self.guidance_scale) * (conditional - unconditional)


def denoise(
    unet: Unet, schedule: Schedule, latents: Latents, conditioning: Conditioning, on_step: OnStep = keep
) -> Latents:
    """Run every step of the schedule.

    Args:
        unet: The UNet, with the inputs sample, timestep and encoder_hidden_states.
        schedule: Timesteps, sigmas and coefficients.
        latents: [n,4,64,64] noise at the first sigma.
        conditioning: Hidden states of the prompts, and the guidance scale.
        on_step: Called with the latents after each step; may change them or stop the loop.

    Returns:
        The final latents [n,4,64,64], before the scaling factor.

    Raises:
        NumericError: The UNet's output or the latents hold NaN or Inf.
    """
    dtypes = {spec.name: spec.dtype for spec in unet.spec.inputs}
    states = {
        True: conditioning.batch().astype(dtypes["encoder_hidden_states"], copy=False),
        False: conditioning.prompt_embeds.astype(dtypes["encoder_hidden_states"], copy=False),
    }
    history: deque[Latents] = deque(maxlen=lms.MAX_ORDER)
    for index in range(schedule.num_inference_steps):
        sigma, timestep = float(schedule.sigmas[index]), float(schedule.timesteps[index])
        hidden = states[conditioning.guided_at(sigma)]
        copies = len(hidden) // len(latents)
        scaled = lms.scale_model_input(latents, sigma).astype(dtypes["sample"], copy=False)
        output = unet.run(
            sample=np.concatenate([scaled] * copies) if copies > 1 else scaled,
            timestep=np.full(len(hidden), timestep, np.float32),
            encoder_hidden_states=hidden,
        )["out_sample"].astype(np.float32, copy=False)
        check_finite(output, "unet", step=index + 1, sigma=sigma)
        guided = conditioning.combine(output)
        history.appendleft(lms.derivative(latents, guided, sigma, schedule.prediction_type))
        latents = lms.step(latents, tuple(history), schedule.coefficients[index])
        check_finite(latents, "latents", step=index + 1, sigma=sigma)
        following = on_step(index, timestep, latents)
        if following is None:
            break
        latents = following
    return latents


def denoise_fused(
    step: Engine, schedule: Schedule, latents: Latents, conditioning: Conditioning, on_step: OnStep = keep
) -> Latents:
    """Run every step of the schedule as one run of denoise_step; the results equal those of `denoise` with guidance.

    Args:
        step: An engine of denoise_step; its batch counts pictures.
        schedule: Timesteps, sigmas and coefficients.
        latents: [n,4,64,64] noise at the first sigma.
        conditioning: Hidden states of prompts and negative prompts, and the guidance scale.
        on_step: Called with the latents after each step; may change them or stop the loop.

    Returns:
        The final latents [n,4,64,64], before the scaling factor.

    Raises:
        UsageError: Guidance is off, or on in some steps only.
        NumericError: The latents hold NaN or Inf; the UNet's output is added to them, so its own show there.
    """
    if conditioning.negative_prompt_embeds is None or conditioning.guidance_interval is not None:
        raise UsageError("denoise_step runs with guidance only", hint="run the plain UNet where guidance is off")
    dtypes = {spec.name: spec.dtype for spec in step.spec.inputs}
    states = {
        "uncond_states": conditioning.negative_prompt_embeds.astype(dtypes["uncond_states"], copy=False),
        "cond_states": conditioning.prompt_embeds.astype(dtypes["cond_states"], copy=False),
    }
    history = np.zeros((len(latents), lms.MAX_ORDER, *latents.shape[1:]), np.float32)
    for index in range(schedule.num_inference_steps):
        sigma, timestep = float(schedule.sigmas[index]), float(schedule.timesteps[index])
        rows = step_rows(schedule, [index] * len(latents), conditioning.guidance_scale)
        outputs = step.run(latents=latents, history=history, **states, **rows)
        latents, history = outputs["next_latents"], outputs["next_history"]
        check_finite(latents, "denoise_step", step=index + 1, sigma=sigma)
        following = on_step(index, timestep, latents)
        if following is None:
            break
        latents = following
    return latents


def step_rows(schedule: Schedule, steps: Sequence[int], guidance_scale: float) -> dict[str, Array]:
    """Return the inputs of denoise_step that change with the step; picture i of the batch is at step ``steps[i]``.

    Returns:
        timestep, sigma and guidance_scale [n] and lms_coefficients [n,4], all float32.
    """
    indices = np.asarray(steps, np.intp)
    return {
        "timestep": schedule.timesteps[indices].astype(np.float32),
        "sigma": schedule.sigmas[indices].astype(np.float32),
        "guidance_scale": np.full(len(indices), guidance_scale, np.float32),
        "lms_coefficients": schedule.coefficients[indices].astype(np.float32),
    }
