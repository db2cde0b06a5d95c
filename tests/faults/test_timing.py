"""Row 40 of the fault matrix: a timing cache that is damaged or of another TensorRT is recreated with a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx as trt

from sdrt.engines.trt.timing_cache import TimingCache
from sdrt.libraries.tensorrt_log import Messages, listen

# In TensorRT-RTX these calls are documented to do nothing; TensorRT, which keeps the caches, needs a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_row_40_a_timing_cache_that_is_none_is_made_anew(tmp_path: Path, damage: str) -> None:
    notes: list[str] = []
    # A configuration must not outlive its builder, nor the builder its logger.
    logger = listen(trt, Messages())
    builder = trt.Builder(logger)
    config: Any = builder.create_builder_config()
    cache = TimingCache(tmp_path / "timing", "tensorrt-10.16-sm86", notes.append)
    cache.give(config)
    cache.keep(config)
    whole = cache.path.read_bytes()
    if damage == "foreign":
        # Sealed by sdrt, and refused by TensorRT, like another version's cache.
        refusing: Any = Refusing(config)
        cache.give(refusing)
        assert refusing.given == [whole[64:], b""]
        assert notes == [f"{cache.path} is of another TensorRT or device; it is created again"]
        return
    spoiled = {"cut": whole[:-1] if len(whole) > 64 else whole[:-2], "flipped": b"0" * 63 + whole[63:], "empty": b""}
    cache.path.write_bytes(spoiled[damage])
    cache.give(config)
    assert notes == [f"{cache.path} does not match its digest; it is created again"]
    cache.keep(config)
    assert cache.path.read_bytes() == whole
    assert [path.name for path in cache.path.parent.glob("*.cache")] == [cache.path.name]


class Refusing:
    """A configuration that takes only an empty timing cache."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self.given: list[bytes] = []

    def create_timing_cache(self, data: bytes) -> Any:
        self.given.append(data)
        return self._config.create_timing_cache(b"")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return len(self.given) > 1
