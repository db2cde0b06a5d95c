"""How far one tensor lies from another. What cannot be compared has no metrics, and never passes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrt.compare.schema import Metrics, OutputResult, ToleranceRecord

Array = npt.NDArray[Any]

#: The metrics of a tensor that a tolerance may bound from above, by its fields.
UPPER = ("relative_l2", "peak")


def incomparable(candidate: Array, reference: Array) -> str:
    """Why two arrays cannot be compared, or "": empty, of different shapes, not numbers, NaN or Inf in either."""
    for name, array in (("candidate", candidate), ("reference", reference)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            return f"the {name} is no array of numbers"
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
        The metrics and "", or None and why there are none: see `incomparable`; or the reference is zero everywhere and
        the candidate is not, which leaves nothing to relate the error to.
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
    """Cosine of the angle between two arrays; 0 where the candidate is zero and so has no direction."""
    return float(np.vdot(found, exact)) / norms if norms else 0.0


def _psnr_db(difference: npt.NDArray[np.float64], data_range: float) -> float:
    """Peak signal-to-noise ratio: 20 log10(range / RMS error)."""
    return 20 * math.log10(data_range / math.sqrt(float(np.mean(difference**2))))


def judge(output: str, candidate: Array, reference: Array, tolerance: ToleranceRecord | None) -> OutputResult:
    """Measure one output and hold it to its tolerance. Without a tolerance it is unverified, unless it is not finite.

    Args:
        output: Its name.
        candidate: What was built.
        reference: What PyTorch gives.
        tolerance: What it may reach.
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
    """The first limit that the metrics break, in words; "" where they break none."""
    for name in UPPER:
        limit, found = getattr(tolerance, name, None), getattr(metrics, name)
        if limit is not None and not found <= limit:
            return f"{name} is {found:.3g}; {limit:.3g} is allowed"
    return ""
