from __future__ import annotations

import numpy as np
import pytest

from sdrt.bench.statistics import paired, percentile, sample, spread


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    # Equal except for the order of additions.
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


def test_a_sample_of_one_value_is_that_value() -> None:
    one = sample([2.0])
    assert (one.min, one.p50, one.p90, one.values) == (2.0, 2.0, 2.0, (2.0,))
    assert spread(one) == 0


def test_what_slows_a_round_falls_out_of_ratios() -> None:
    ours, peer = [1.0, 10.0, 2.0], [2.0, 20.0, 4.0]
    assert paired(peer, ours).values == (2.0, 2.0, 2.0)
    # The control: medians of each side alone, in other rounds, would give another ratio.
    assert sample([2.0, 20.0, 20.0]).p50 / sample(ours).p50 == 10.0


def test_pairs_have_to_be_pairs() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired([1.0], [1.0, 2.0])


def test_the_spread_is_a_share_of_the_median() -> None:
    assert spread(sample([1.0, 1.0, 1.0])) == 0
    assert spread(sample([8.0, 10.0, 12.0])) == pytest.approx((11.6 - 8) / 10)
