"""Statistics of repeated measurements, and ratios of interleaved ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdrt.bench.schema import Sample


def sample(values: Sequence[float]) -> Sample:
    """Return the values with their minimum, median and 90th percentile; there must be at least one."""
    return Sample(values=tuple(values), min=min(values), p50=percentile(values, 50), p90=percentile(values, 90))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, linear between the two nearest values (Hyndman and Fan 1996, definition 7; NumPy's)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Sample:
    """Return the quotients round by round, in which a disturbance of both cancels."""
    return sample([above / below for above, below in zip(numerators, denominators, strict=True)])


def spread(values: Sample) -> float:
    """Return the 90th percentile minus the minimum, relative to the median."""
    return (values.p90 - values.min) / values.p50
