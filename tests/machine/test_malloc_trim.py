"""Freed memory goes back to the system if the C library supports it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sdrt.machine import malloc_trim
from sdrt.machine.malloc_trim import trim_heap
from sdrt.runtime.backends import session


@pytest.mark.parametrize(
    ("platform", "has_it", "expected"), [("linux", True, [0]), ("linux", False, []), ("darwin", True, [])]
)
def test_the_c_library_is_told_where_it_can_be(
    platform: str, has_it: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    library = SimpleNamespace(malloc_trim=told.append) if has_it else SimpleNamespace()
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(malloc_trim.ctypes, "CDLL", lambda _: library)  # type: ignore[attr-defined]
    trim_heap()
    assert told == expected


def test_the_real_one_can_be_told() -> None:
    trim_heap()


def test_it_is_told_when_an_engine_is_let_go_of(hand_sets: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[set[str]] = []
    opened = session.Session(hand_sets(), lambda name: SimpleNamespace(name=name, close=lambda: None))  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(session, "trim_heap", lambda: told.append({*opened._opened}))
    opened.engine("unet")
    opened.engine("vae_decoder")
    opened.release("unet")
    # Once it is closed, and only if there was one.
    opened.release("text_encoder")
    assert told == [{"vae_decoder"}]
