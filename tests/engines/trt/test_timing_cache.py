"""Timing caches, by TensorRT-RTX's own cache objects: kept, merged, and recreated if they do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx as trt

from sdrt.artefacts.sealed import DIGEST_BYTES
from sdrt.engines.trt.timing_cache import TimingCache
from sdrt.libraries.tensorrt_log import Messages, listen

# In TensorRT-RTX these calls are documented to do nothing; TensorRT, which keeps the caches, needs a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.fixture
def config() -> Iterator[Any]:
    # A configuration must not outlive its builder, nor the builder its logger.
    logger = listen(trt, Messages())
    builder = trt.Builder(logger)
    yield builder.create_builder_config()
    del builder


def test_a_cache_is_kept_sealed_and_read_again(tmp_path: Path, config: Any) -> None:
    notes: list[str] = []
    cache = TimingCache(tmp_path / "timing", "tensorrt-10.16-sm86", notes.append)
    cache.give(config)
    cache.keep(config)
    assert len(cache.path.read_bytes()) > DIGEST_BYTES
    cache.give(config)
    cache.keep(config)
    assert notes == []
    assert [path.name for path in cache.path.parent.glob("*.cache")] == ["tensorrt-10.16-sm86.cache"]


@pytest.mark.parametrize("content", [b"", b"garbage" * 30, b"0" * DIGEST_BYTES])
def test_a_corrupt_cache_is_said_so_and_made_anew(tmp_path: Path, config: Any, content: bytes) -> None:
    notes: list[str] = []
    cache = TimingCache(tmp_path, "device", notes.append)
    cache.path.write_bytes(content)
    cache.give(config)
    (note,) = notes
    assert "does not match its digest" in note
    cache.keep(config)
    cache.give(config)
    assert len(notes) == 1


def test_one_flipped_byte_is_found(tmp_path: Path, config: Any) -> None:
    notes: list[str] = []
    cache = TimingCache(tmp_path, "device", notes.append)
    cache.give(config)
    cache.keep(config)
    data = bytearray(cache.path.read_bytes())
    data[-1] ^= 1
    cache.path.write_bytes(data)
    cache.give(config)
    assert len(notes) == 1


class Foreign:
    """A configuration that takes every cache but an empty one for another device's."""

    def __init__(self) -> None:
        self.held: bytes | None = None

    def create_timing_cache(self, data: bytes) -> bytes:
        """Return the bytes themselves."""
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        """Reject all but an empty one."""
        assert not ignore_mismatch
        if cache:
            return False
        self.held = cache
        return True


def test_a_foreign_cache_is_not_used(tmp_path: Path, config: Any) -> None:
    notes: list[str] = []
    cache = TimingCache(tmp_path, "device", notes.append)
    cache.give(config)
    cache.keep(config)
    foreign: Any = Foreign()
    cache.give(foreign)
    assert foreign.held == b""
    (note,) = notes
    assert "another TensorRT or device" in note
