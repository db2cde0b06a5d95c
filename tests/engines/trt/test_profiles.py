"""Profiles, checked against the graph's shape before TensorRT sees them."""

from __future__ import annotations

import pytest

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import TensorSpec
from sdrt.engines.trt.profiles import profile_shapes
from sdrt.errors import EngineError, UsageError

SAMPLE = TensorSpec(name="sample", dtype="float16", shape=("batch", 4, 64, 64))
RANGE = BatchRange(min=1, opt=2, max=8)


def test_the_named_axis_takes_the_rows() -> None:
    shapes = profile_shapes("unet", SAMPLE, (-1, 4, 64, 64), RANGE)
    assert shapes == ((1, 4, 64, 64), (2, 4, 64, 64), (8, 4, 64, 64))


@pytest.mark.parametrize(("low", "best", "high"), [(2, 1, 4), (1, 5, 4), (0, 1, 1)])
def test_rows_that_do_not_rise_name_the_input(low: int, best: int, high: int) -> None:
    wrong = BatchRange.model_construct(min=low, opt=best, max=high)
    with pytest.raises(UsageError, match=f"unet: input sample: batch {low}:{best}:{high} does not rise"):
        profile_shapes("unet", SAMPLE, (-1, 4, 64, 64), wrong)


def test_a_fixed_batch_takes_that_number_alone() -> None:
    two = BatchRange(min=2, opt=2, max=2)
    assert profile_shapes("unet", SAMPLE, (2, 4, 64, 64), two)[0] == (2, 4, 64, 64)
    for outside in (RANGE, BatchRange(min=3, opt=3, max=3), BatchRange(min=2, opt=2, max=3)):
        with pytest.raises(UsageError, match="has batch 2 in the graph"):
            profile_shapes("unet", SAMPLE, (2, 4, 64, 64), outside)


@pytest.mark.parametrize("graph", [(-1, 4, 64, 32), (-1, 4, 64), (-1, -1, 64, 64)])
def test_a_graph_of_another_shape_is_refused(graph: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="input sample has"):
        profile_shapes("unet", SAMPLE, graph, RANGE)
