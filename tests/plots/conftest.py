"""Fixtures of the plots' tests: the tiny checkpoint's engines, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrt.artefacts.engine_set import EngineSet
from sdrt.plots.model import Model


@pytest.fixture
def model(tiny_engines: Callable[..., EngineSet]) -> Iterator[Model]:
    """Open the tiny checkpoint for plots."""
    with Model(tiny_engines()) as opened:
        yield opened


@pytest.fixture
def picture() -> Image.Image:
    """Draw a picture with structure, 512x512."""
    y, x = np.mgrid[:512, :512]
    channels = [x // 2, y // 2, (x // 64 + y // 64) % 2 * 255]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.fixture
def picture_path(picture: Image.Image, tmp_path: Path) -> Path:
    """Write the picture to a file."""
    path = tmp_path / "a picture.png"
    picture.save(path)
    return path
