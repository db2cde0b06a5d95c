"""Noise and prompts for the hand-written graphs, and the difference of final latents."""

from __future__ import annotations

import numpy as np

from sdrt.runtime.denoise import Conditioning, Latents
from sdrt.sampling.lms import Schedule
from tests.doubles.cuda_double.plans import SD_V1
from tests.models.tiny_bundle import HIDDEN_SIZE, LATENTS, MAX_TOKENS


def sd_v1_schedule(steps: int = 7, prediction_type: str = "epsilon", order: int = 4) -> Schedule:
    """Return Stable Diffusion v1's noise levels."""
    return Schedule.from_config({**SD_V1, "prediction_type": prediction_type}, steps, order)


def noise(schedule: Schedule, count: int = 1, seed: int = 0) -> Latents:
    """Draw noise at the schedule's first sigma, of shape [count, 4, 8, 8]."""
    unit = np.random.default_rng(seed).standard_normal((count, *LATENTS), np.float32)
    return unit * np.float32(schedule.init_noise_sigma)


def conditioning(count: int = 1, *, scale: float = 7.5, guided: bool = True, seed: int = 1) -> Conditioning:
    """Draw hidden states of ``count`` prompts and, if guided, as many negative prompts."""
    states = np.random.default_rng(seed).standard_normal((2, count, MAX_TOKENS, HIDDEN_SIZE)).astype(np.float32)
    return Conditioning(states[0], states[1] if guided else None, scale)


def difference(actual: Latents, expected: Latents) -> float:
    """Return the largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float32
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
