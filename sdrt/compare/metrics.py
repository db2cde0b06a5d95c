"""Metrics between two tensors. Tensors that cannot be compared have no metrics and never pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrt.compare.schema import Metrics, OutputResult, ToleranceRecord

Array = npt.NDArray[Any]

#: Metrics of a tensor that a tolerance may bound from above; names of `Metrics` and `ToleranceRecord` fields.
UPPER = ("relative_l2", "peak")


def incomparable(candidate: Array, reference: Array) -> str:
    """Return the reason why two arrays cannot be compared: empty, shapes differ, not numbers, NaN or Inf; else ""."""
    for name, array in (("candidate", candidate), ("reference", reference)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            return f"the {name} is not an array of numbers"
        if not array.size:
            return f"the {name} is empty, of shape {array.shape}"
    if candidate.shape != reference.shape:
        return f"the candidate has shape {candidate.shape}, the reference {reference.shape}"
    for name, array in (("candidate", candidate), ("reference", reference)):
        finite = np.isfinite(array)
        if not finite.all():
            where = tuple(int(axis) for axis in np.argwhere(~finite)[0])
            nan = int(np.isnan(array).sum())
            inf = array.size - int(finite.sum()) - nan
            return f"the {name} has {nan} NaN and {inf} Inf of {array.size} values, the first at {where}"
    return ""


def measure(candidate: Array, reference: Array) -> tuple[Metrics | None, str]:
    """Compare two arrays of one shape in float64.

    Returns:
        The metrics and "", or None and the reason: that of `incomparable`, or that the reference is zero everywhere
        and the candidate is not, so that a relative error is undefined.
    """
    reason = incomparable(candidate, reference)
    if reason:
        return None, reason
    exact, found = reference.astype(np.float64), candidate.astype(np.float64)
    difference = np.abs(found - exact)
    worst = int(difference.argmax())
    max_absolute, peak = float(difference.flat[worst]), float(np.abs(exact).max())
    norm, found_norm, distance = (float(np.linalg.norm(values)) for values in (exact, found, difference))
    if norm == 0 and max_absolute > 0:
        return None, "the reference is zero everywhere, and the candidate is not"
    return Metrics(
        max_absolute=max_absolute,
        relative_l2=distance / norm if distance else 0.0,
        peak=max_absolute / peak if max_absolute else 0.0,
        cosine=_cosine(found, exact, norm * found_norm) if max_absolute else 1.0,
        psnr_db=_psnr_db(difference, float(exact.max() - exact.min()) or peak) if max_absolute else None,
        worst_index=tuple(int(axis) for axis in np.unravel_index(worst, exact.shape)),
        worst_reference=float(exact.flat[worst]),
        worst_candidate=float(found.flat[worst]),
    ), ""


def _cosine(found: npt.NDArray[np.float64], exact: npt.NDArray[np.float64], norms: float) -> float:
    """Compute the cosine of the angle between two arrays; 0 if the candidate is zero and so has no direction."""
    return float(np.vdot(found, exact)) / norms if norms else 0.0


def _psnr_db(difference: npt.NDArray[np.float64], data_range: float) -> float:
    """Compute the peak signal-to-noise ratio in dB: 20 log10(range / RMS error)."""
    return 20 * math.log10(data_range / math.sqrt(float(np.mean(difference**2))))


def judge(output: str, candidate: Array, reference: Array, tolerance: ToleranceRecord | None) -> OutputResult:
    """Measure one output and compare it with its tolerance.

    Args:
        output: Name of the output.
        candidate: The candidate's array.
        reference: PyTorch's array.
        tolerance: Limits; without any the output is unverified, or failed if it cannot be compared.
    """
    metrics, reason = measure(candidate, reference)
    if metrics is None:
        return OutputResult(output=output, metrics=None, tolerance=tolerance, outcome="failed", reason=reason)
    reason = broken(metrics, tolerance)
    if tolerance is None or not any(getattr(tolerance, name) is not None for name in UPPER):
        reason, outcome = "no tolerance is known for this component, backend and precision", "unverified"
    else:
        outcome = "failed" if reason else "passed"
    return OutputResult.model_validate(
        {"output": output, "metrics": metrics, "tolerance": tolerance, "outcome": outcome, "reason": reason}
    )


def broken(metrics: Metrics, tolerance: ToleranceRecord | None) -> str:
    """Return the first limit that the metrics break, as text; "" if they break none."""
    for name in UPPER:
        limit, found = getattr(tolerance, name, None), getattr(metrics, name)
        if limit is not None and not found <= limit:
            return f"{name} is {found:.3g}; {limit:.3g} is allowed"
    return ""
