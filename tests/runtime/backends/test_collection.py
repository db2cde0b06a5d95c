"""No collection while TensorRT holds its lock."""

from __future__ import annotations

import gc

import pytest

from sdrt.runtime.backends.collection import uncollected


def test_collection_is_off_inside_and_on_again_after() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_turns_it_on_again() -> None:
    with pytest.raises(ValueError, match="inside"), uncollected():
        raise ValueError("inside")
    assert gc.isenabled()
