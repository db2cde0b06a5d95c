"""Linear multistep (LMS) sampling: the schedule as a value, and the few operations of a denoising step.

A sampler of variance-exploding form (Karras et al. 2022, arXiv:2206.00364, section 3) solves dx/dsigma = d(x, sigma)
from the largest sigma to 0. LMS is the Adams-Bashforth method on an uneven grid: the last ``order`` derivatives are
interpolated by a polynomial, and the polynomial is integrated over the step. The reference implementation is
``LMSDiscreteScheduler`` of diffusers, itself after ``sample_lms`` of k-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from sdrt.arguments import whole
from sdrt.errors import ArtefactError
from sdrt.sampling.noise_config import OTHER_SCHEDULER_HINT, NoiseConfig, PredictionType

MAX_ORDER = 4

Floats = npt.NDArray[np.float64]
Latents = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Timesteps, noise levels and LMS weights of all steps. Its arrays are read-only float64.

    Attributes:
        timesteps: [n] timestep of each step for the UNet, decreasing; each value is exact in float32.
        sigmas: [n + 1] noise level before each step, decreasing, and 0 after the last; each value is exact in float32.
        coefficients: [n, 4] LMS weights of the derivatives, the newest first, zero while there is no history yet.
        init_noise_sigma: Factor from unit noise to the first latents.
        num_inference_steps: n.
        prediction_type: Meaning of the UNet's output.
    """

    timesteps: Floats
    sigmas: Floats
    coefficients: Floats
    init_noise_sigma: float
    num_inference_steps: int
    prediction_type: PredictionType

    @classmethod
    def from_config(cls, config: Mapping[str, Any], num_inference_steps: int, order: int = MAX_ORDER) -> Schedule:
        """Build the schedule of a number of steps over the noise levels that a checkpoint was trained with.

        The timesteps are evenly spaced from the last trained one to 0, whatever sampler class the config names; a
        single step stands at timestep 0, as in diffusers.

        Args:
            config: The checkpoint's ``scheduler_config.json``, parsed.
            num_inference_steps: 1 to the config's ``num_train_timesteps``.
            order: Number of derivatives that a step uses, 1 (Euler's method) to 4.

        Raises:
            UsageError: A number is out of its range.
            ArtefactError: The config is malformed, or requires something other than LMS on linspace timesteps.

        Example:
            >>> schedule = Schedule.from_config({"beta_schedule": "linear"}, num_inference_steps=4)
            >>> schedule.timesteps
            array([999., 666., 333.,   0.])
            >>> schedule.coefficients[0]
            array([-147.91835213,    0.        ,    0.        ,    0.        ])
        """
        noise = _validated(config)
        steps = whole("num_inference_steps", num_inference_steps, 1, noise.num_train_timesteps)
        order = whole("order", order, 1, MAX_ORDER)
        # Rounded to float32, the UNet's input type, so that the sigmas belong to the timesteps it receives.
        timesteps = np.linspace(0, noise.num_train_timesteps - 1, steps)[::-1].astype(np.float32).astype(np.float64)
        table = noise.sigmas()
        if not (table[0] > 0 and np.all(table[1:] > table[:-1]) and np.isfinite(table[-1])):
            raise ArtefactError(
                "scheduler_config.json: the betas do not give noise levels that rise with every timestep",
                hint="every beta must be above 0 and below 1; compare with the model that it was tuned from",
            )
        levels = np.interp(timesteps, np.arange(len(table)), table)
        sigmas = np.append(levels, 0.0).astype(np.float32).astype(np.float64)
        coefficients = lms_coefficients(sigmas, order)
        for array in (timesteps, sigmas, coefficients):
            array.setflags(write=False)
        return cls(timesteps, sigmas, coefficients, float(sigmas[0]), steps, noise.prediction_type)

    def starting_at(self, step: int, *, fresh: bool = False) -> Schedule:
        """Return the schedule of the steps from ``step`` to the last, for latents that are not pure noise.

        Args:
            step: First step that runs, counted from 0.
            fresh: Whether the order rises from 1 again, as at the start of a schedule. Else the steps keep their
                coefficients of the whole schedule, and the missing derivatives before them count as zero, as in
                diffusers' scheduler.
        """
        sigmas = self.sigmas[step:]
        coefficients = lms_coefficients(sigmas, MAX_ORDER) if fresh else self.coefficients[step:]
        coefficients.setflags(write=False)
        return replace(
            self,
            timesteps=self.timesteps[step:],
            sigmas=sigmas,
            coefficients=coefficients,
            init_noise_sigma=float(sigmas[0]),
            num_inference_steps=self.num_inference_steps - step,
        )


def _validated(config: Mapping[str, Any]) -> NoiseConfig:
    """Validate a scheduler config; raise an ArtefactError that names the first wrong option."""
    try:
        return NoiseConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "the whole"
        found, wanted = repr(first["input"])[:80], first["msg"].removeprefix("Value error, ")
        hint = "sdrt samples by LMS over the checkpoint's own betas; change this in its scheduler_config.json"
        if name == "_class_name":
            hint = OTHER_SCHEDULER_HINT
        raise ArtefactError(f"scheduler_config.json: {name} is {found}: {wanted}", hint=hint) from error


def lms_coefficients(sigmas: Floats, order: int) -> Floats:
    """Compute the exact weights of the newest ``order`` derivatives in each step, [n, 4], for ``sigmas`` [n + 1].

    Weight j of step i is the integral, from sigma_i to sigma_i+1, of the Lagrange polynomial that is 1 at sigma_i-j and
    0 at the step's other nodes; step i has min(i + 1, order) nodes. Gauss-Legendre quadrature with p points is exact
    for degree 2p - 1, and here without cancellation: all nodes lie on one side of the step, so the terms have one sign.
    """
    points, weights = np.polynomial.legendre.leggauss((order + 1) // 2)
    widths = np.diff(sigmas)
    rows = np.zeros((len(widths), MAX_ORDER))
    for count in range(1, min(order, len(widths)) + 1):
        last = len(widths) if count == order else count
        indices = np.arange(count - 1, last)[:, np.newaxis]
        nodes = sigmas[indices - np.arange(count)]
        tau = sigmas[indices] + widths[indices] * (points + 1) / 2
        for j in range(count):
            others = np.delete(nodes, j, axis=1)[:, np.newaxis]
            basis = np.prod((tau[:, :, np.newaxis] - others) / (nodes[:, j, np.newaxis, np.newaxis] - others), axis=2)
            rows[count - 1 : last, j] = widths[count - 1 : last] / 2 * (basis @ weights)
    return rows


def scale_model_input(latents: Latents, sigma: float) -> Latents:
    """Scale latents of variance sigma^2 + 1 to unit variance, as the UNet was trained on."""
    return latents / np.float32(math.sqrt(sigma * sigma + 1))


def derivative(latents: Latents, model_output: Latents, sigma: float, prediction_type: PredictionType) -> Latents:
    """Compute d(x, sigma) = (x - x0) / sigma, where x0 is the denoised picture that the UNet's output implies.

    For epsilon, x0 = x - sigma * output, so the output is the derivative. For v_prediction (Salimans and Ho 2022,
    arXiv:2202.00512, appendix D, brought to variance-exploding form) x0 = x / (sigma^2 + 1) - output * sigma /
    sqrt(sigma^2 + 1), so d = x * sigma / (sigma^2 + 1) + output / sqrt(sigma^2 + 1).
    """
    if prediction_type == "epsilon":
        return model_output
    variance = sigma * sigma + 1
    return latents * np.float32(sigma / variance) + model_output / np.float32(math.sqrt(variance))


def step(latents: Latents, derivatives: Sequence[Latents], coefficients: Floats) -> Latents:
    """Take a step from one sigma to the next: add the weighted derivatives.

    Args:
        latents: [n, c, h, w] at the step's sigma.
        derivatives: Up to 4 derivatives so far, the newest first, each shaped like ``latents``.
        coefficients: [4] the step's row of ``Schedule.coefficients``.

    Returns:
        [n, c, h, w] at the next sigma.
    """
    following = latents.copy()
    for weight, slope in zip(coefficients, derivatives, strict=False):
        following += np.float32(weight) * slope
    return following


def add_noise(latents: Latents, noise: Latents, sigma: float) -> Latents:
    """Add unit noise at level ``sigma`` to the latents of a picture, to start denoising from them."""
    return latents + np.float32(sigma) * noise
