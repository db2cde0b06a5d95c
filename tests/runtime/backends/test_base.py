from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdrt.arrays import Array, check_finite
from sdrt.artefacts.engine_set import BatchRange
from sdrt.errors import EngineError, NumericError, ResourceError, SdrtError, UsageError
from sdrt.libraries.errors import library_error
from sdrt.runtime.backends.base import Engine
from tests.doubles.engines import engine_component, tensor


class Sum(Engine):
    """Adds its inputs."""

    open = True

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.fed = feeds
        return {"total": sum(feeds.values(), np.zeros(()))}

    def release(self) -> None:
        self.open = False


@pytest.fixture
def engine() -> Sum:
    batch = BatchRange(min=2, opt=2, max=3)
    inputs = [tensor("sample", 4), tensor("timestep", 1)]
    return Sum("unet", engine_component(inputs, [tensor("total", 4)], batch=batch))


def pair(batch: int = 2, other: int | None = None, dtype: Any = np.float32) -> dict[str, Array]:
    return {"sample": np.ones((batch, 4), dtype), "timestep": np.ones((other or batch, 1), np.float32)}


def test_a_run_is_checked_timed_and_closed(engine: Sum) -> None:
    with engine:
        np.testing.assert_array_equal(engine.run(**pair())["total"], np.full((2, 4), 2))
        assert engine.last_s > 0
    assert not engine.open


def test_arrays_reach_the_backend_contiguous(engine: Sum) -> None:
    feeds = pair()
    feeds["sample"] = np.ones((4, 2), np.float32).T
    engine.run(**feeds)
    assert all(array.flags.c_contiguous for array in engine.fed.values())


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"sample": np.ones((2, 4), np.float32)}, "unet takes sample, timestep; got sample"),
        ({**pair(), "extra": np.ones(1)}, "got extra, sample, timestep"),
        ({}, "got nothing"),
        (pair(dtype=np.float64), "sample is float64; it must be float32"),
        (pair(dtype=np.float16), "sample is float16"),
        ({**pair(), "sample": np.ones((2, 5), np.float32)}, r"has shape \(2, 5\); it must be \(batch=2, 4\)"),
        ({**pair(), "sample": np.ones(4, np.float32)}, r"has shape \(4,\); it must be \(batch, 4\)"),
        ({**pair(), "sample": np.ones((2, 4, 1), np.float32)}, r"has shape \(2, 4, 1\)"),
        (pair(2, other=3), r"timestep has shape \(3, 1\); it must be \(batch=2, 1\)"),
        (pair(1), "built for batches of 2 to 3; got 1"),
        (pair(4), "built for batches of 2 to 3; got 4"),
    ],
)
def test_what_does_not_fit_is_named_and_not_run(engine: Sum, feeds: dict[str, Array], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        engine.run(**feeds)
    assert refused.value.hint
    assert engine.last_s == 0


@pytest.mark.parametrize(("rows", "hint"), [(1, "ignores the tuned engines"), (4, "ask for fewer pictures")])
def test_a_batch_that_does_not_fit_says_what_would(engine: Sum, rows: int, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        engine.run(**pair(rows))
    assert hint in refused.value.hint


def test_finite_numbers_pass() -> None:
    check_finite(np.array([0.0, 65504.0, -1e30]), "unet", step=1, sigma=14.6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_are_none_are_named(dtype: Any) -> None:
    array = np.zeros((2, 3, 4), dtype)
    array[1, 0, 2] = np.nan
    array[1, 2, 3] = -np.inf
    array[1, 2, 2] = np.inf
    message = r"unet gave 1 NaN and 2 Inf of 24 values at step 7 \(sigma 1\.235\), the first at \(1, 0, 2\)"
    with pytest.raises(NumericError, match=message) as refused:
        check_finite(array, "unet", step=7, sigma=1.23456)
    assert "--precision fp32" in refused.value.hint


def test_a_component_outside_the_loop_has_no_step() -> None:
    with pytest.raises(NumericError, match=r"^vae_decoder gave 1 NaN and 0 Inf of 1 values, the first at \(0,\)$"):
        check_finite(np.array([np.nan]), "vae_decoder")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("a\nstd::bad_alloc\n"),
        RuntimeError("Failed to allocate memory for 9 GB"),
        RuntimeError("can't alloc"),
    ],
)
def test_want_of_memory_is_told_apart(error: Exception) -> None:
    assert isinstance(library_error("unet failed", error), ResourceError)


def test_a_library_is_quoted_by_its_last_line() -> None:
    found = library_error("unet failed", RuntimeError("Exception from x.cpp:1:\n  bad shape \n\n"))
    assert isinstance(found, EngineError)
    assert found.message == "unet failed: bad shape"
    assert library_error("unet failed", RuntimeError()).message == "unet failed: RuntimeError"


@pytest.mark.parametrize(
    ("total", "kind", "message"),
    [
        (np.zeros((0, 4), np.float32), ResourceError, "unet gave total without values: out of memory"),
        (np.zeros((3, 4), np.float32), EngineError, r"unet gave total of shape \(3, 4\); it must be \(2, 4\)"),
        (np.zeros((2, 1), np.float32), EngineError, r"must be \(2, 4\)"),
        (np.zeros(4, np.float32), EngineError, r"must be \(2, 4\)"),
    ],
)
def test_outputs_have_the_shape_of_the_inputs(
    engine: Sum, monkeypatch: pytest.MonkeyPatch, total: Array, kind: type[SdrtError], message: str
) -> None:
    monkeypatch.setattr(engine, "execute", lambda feeds: {"total": total})
    with pytest.raises(kind, match=message):
        engine.run(**pair())


@pytest.mark.parametrize(
    "reason",
    [
        "std::bad_alloc",
        "Cannot allocate memory",
        "libx.so: failed to map segment from shared object\nsee the log",
        "Resource temporarily unavailable",
    ],
)
def test_want_of_memory_is_known_by_its_words(reason: str) -> None:
    assert isinstance(library_error("it failed", RuntimeError(reason)), ResourceError)
    assert isinstance(library_error("it failed", RuntimeError("no such operator")), EngineError)
