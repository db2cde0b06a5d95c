"""Garbage collection is off while TensorRT holds its lock, in every thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdrt.machine.gc_pause import gc_paused

LIMIT_S = 30


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_collection_is_off_inside_and_on_again_after() -> None:
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_turns_it_on_again() -> None:
    with pytest.raises(ValueError, match="inside"), gc_paused():
        raise ValueError("inside")
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    with gc_paused(), gc_paused():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize("fails", [False, True])
def test_two_threads_that_overlap_leave_it_off_until_the_last_ends(fails: bool) -> None:
    """End the first thread to begin first, also by an error."""
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with gc_paused():
            entered.set()
            assert leave.wait(LIMIT_S)
            if fails:
                raise ValueError("inside")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first)
        assert entered.wait(LIMIT_S)
        with gc_paused():
            leave.set()
            error = running.exception(LIMIT_S)
            assert isinstance(error, ValueError) if fails else error is None
            assert not gc.isenabled()
    assert gc.isenabled()


def test_many_threads_leave_it_as_it_was() -> None:
    seen: list[bool] = []

    def work(_: int) -> None:
        for _ in range(200):
            with gc_paused():
                seen.append(gc.isenabled())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert seen == [False] * 800
    assert gc.isenabled()


class Cycle:
    """Garbage that only the collector frees, and that pauses it while it is freed."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        with gc_paused():
            pass


def test_a_finaliser_may_pause_it_too() -> None:
    Cycle()
    gc.collect()
    assert gc.isenabled()
    with gc_paused():
        Cycle()
        gc.collect()
        assert not gc.isenabled()
    assert gc.isenabled()
