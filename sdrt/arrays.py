"""The array type, and the check that numbers are finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdrt.errors import NumericError

Array = np.ndarray[Any, np.dtype[Any]]


def check_finite(array: Array, component: str, *, step: int | None = None, sigma: float | None = None) -> None:
    """Raise NumericError unless all values of an array are finite.

    Args:
        array: Any shape.
        component: Component that produced it.
        step: Denoising step, counted from 1; None outside the denoising loop.
        sigma: Noise level of the step.

    Raises:
        NumericError: The array holds NaN or Inf; says how many, where and at which step.
    """
    finite = np.isfinite(array)
    if finite.all():
        return
    nan = int(np.isnan(array).sum())
    inf = array.size - int(finite.sum()) - nan
    first = tuple(int(i) for i in np.argwhere(~finite)[0])
    at = f" at step {step}" if step is not None else ""
    at += f" (sigma {sigma:.4g})" if sigma is not None else ""
    raise NumericError(
        f"{component} gave {nan} NaN and {inf} Inf of {array.size} values{at}, the first at {first}",
        hint="run it again with --precision fp32; if that fails too, check the checkpoint's weights",
    )


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return ||actual - expected|| / ||expected|| in float64; inf if shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not actual.size:
        return float("inf")
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))
