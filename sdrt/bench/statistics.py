"""Samples of what was measured again and again, and ratios of two that were measured in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdrt.bench.schema import Sample


def sample(values: Sequence[float]) -> Sample:
    """Least value, median and 90th percentile of at least one value."""
    return Sample(values=tuple(values), min=min(values), p50=percentile(values, 50), p90=percentile(values, 90))


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, linear between the two nearest values (Hyndman and Fan 1996, definition 7; NumPy's default)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Sample:
    """Quotients pair by pair: what disturbed both in a round falls out."""
    return sample([above / below for above, below in zip(numerators, denominators, strict=True)])


def spread(values: Sample) -> float:
    """How far the 90th percentile stands above the least value, as a share of the median."""
    return (values.p90 - values.min) / values.p50
