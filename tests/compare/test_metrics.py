"""Metrics against values computed by hand, and results that never pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrt.compare.metrics import broken, incomparable, judge, measure
from sdrt.compare.schema import Metrics, ToleranceRecord

LOOSE = ToleranceRecord(relative_l2=1e9, peak=1e9, reason="anything comparable passes")


def metrics(candidate: Any, reference: Any) -> Metrics:
    found, reason = measure(np.asarray(candidate), np.asarray(reference))
    assert found is not None, reason
    return found


def test_by_hand() -> None:
    found = metrics([[3.0, 4.5]], [[3.0, 4.0]])
    assert found.max_absolute == 0.5
    assert found.relative_l2 == pytest.approx(0.1)
    assert found.peak == pytest.approx(0.125)
    assert found.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    # Range 1, RMS error sqrt(0.25 / 2): 20 log10(sqrt(8)).
    assert found.psnr_db == pytest.approx(9.0309, abs=1e-4)
    assert (found.worst_index, found.worst_reference, found.worst_candidate) == ((0, 1), 4.0, 4.5)


@pytest.mark.parametrize("values", [[1.0, -2.0], [0.0, 0.0], [7.0]])
def test_what_is_equal(values: list[float]) -> None:
    found = metrics(values, values)
    assert (found.max_absolute, found.relative_l2, found.peak, found.cosine) == (0, 0, 0, 1)
    assert found.psnr_db is None


def test_a_candidate_of_zeros_has_no_direction() -> None:
    found = metrics([0.0, 0.0], [3.0, 4.0])
    assert (found.relative_l2, found.cosine) == (1, 0)


def test_half_precision_is_measured_in_double() -> None:
    # In fp16 the squares would be Inf.
    found = metrics(np.array([300.0, 400.0], np.float16), np.array([300.0, 401.0], np.float32))
    assert found.relative_l2 == pytest.approx(1 / np.hypot(300, 401))


NEVER = [
    ([np.nan], [np.nan], "1 NaN and 0 Inf of 1 values"),
    ([np.inf], [np.inf], "0 NaN and 1 Inf"),
    ([1.0, np.nan], [1.0, 1.0], r"the candidate has 1 NaN and 0 Inf of 2 values, the first at \(1,\)"),
    ([1.0], [-np.inf], "the reference has 0 NaN and 1 Inf"),
    ([1.0], [1.0, 1.0], r"the candidate has shape \(1,\), the reference \(2,\)"),
    ([[1.0, 1.0]], [1.0, 1.0], "shape"),
    (1.0, [1.0], "shape"),
    ([], [], "the candidate is empty"),
    ([1.0], [], "the reference is empty"),
    ([1.0], [0.0], "the reference is zero everywhere"),
    (["1"], ["1"], "not an array of numbers"),
    ([1j], [1j], "not an array of numbers"),
]


@pytest.mark.parametrize(("candidate", "reference", "reason"), NEVER)
def test_what_cannot_be_compared_never_passes(candidate: Any, reference: Any, reason: str) -> None:
    result = judge("y", np.asarray(candidate), np.asarray(reference), LOOSE)
    assert (result.outcome, result.metrics) == ("failed", None)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


def test_what_cannot_be_compared_fails_without_a_tolerance_too() -> None:
    nan = np.array([np.nan])
    assert judge("y", nan, nan, None).outcome == "failed"
    assert incomparable(nan, nan)


def test_a_tolerance_is_held_to_the_last_bit() -> None:
    found = metrics([3.0, 4.5], [3.0, 4.0])
    at = ToleranceRecord(relative_l2=found.relative_l2, peak=found.peak, reason="as measured")
    assert broken(found, at) == ""
    below = at.model_copy(update={"peak": np.nextafter(found.peak, 0)})
    assert broken(found, below) == "peak is 0.125; 0.125 is allowed"
    assert judge("y", np.array([3.0, 4.5]), np.array([3.0, 4.0]), below).outcome == "failed"
    assert judge("y", np.array([3.0, 4.5]), np.array([3.0, 4.0]), at).outcome == "passed"


@pytest.mark.parametrize("tolerance", [None, ToleranceRecord(psnr_db=1, reason="says nothing of tensors")])
def test_without_a_limit_nothing_is_verified(tolerance: ToleranceRecord | None) -> None:
    result = judge("y", np.ones(2), np.ones(2), tolerance)
    assert (result.outcome, result.metrics is None) == ("unverified", False)
    assert "no tolerance" in result.reason


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 10))
def test_scale_changes_no_share(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    reference, candidate = rng.standard_normal((2, 5, 3))
    small, large = metrics(candidate, reference), metrics(candidate * scale, reference * scale)
    for name in ("relative_l2", "peak", "cosine", "psnr_db"):
        # Rounding of some ten operations in float64.
        assert getattr(large, name) == pytest.approx(getattr(small, name), rel=1e-9)
    assert np.isclose(large.max_absolute, small.max_absolute * scale)
