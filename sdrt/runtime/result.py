"""The result of a call of the pipeline: pictures, their records, and timings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.runtime.request import Request

if TYPE_CHECKING:
    from PIL import Image

Latents = npt.NDArray[np.float32]


@dataclass
class Timings:
    """Seconds by stage, and of each UNet step."""

    load: float = 0.0
    vae_encoder: float = 0.0
    text_encoder: float = 0.0
    unet: float = 0.0
    vae_decoder: float = 0.0
    total: float = 0.0
    steps: list[float] = field(default_factory=list)

    @property
    def unet_s_per_step(self) -> float:
        """Median UNet seconds of the steps after the first, which warms up."""
        return statistics.median(self.steps[1:] or self.steps or [0.0])

    def add(self, other: Timings) -> None:
        """Add another run's seconds and steps."""
        for stage in ("load", "vae_encoder", "text_encoder", "unet", "vae_decoder", "total"):
            setattr(self, stage, getattr(self, stage) + getattr(other, stage))
        self.steps += other.steps

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = time.perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


@dataclass(frozen=True)
class Result:
    """Pictures with their records, final latents [n,4,64,64] before scaling, and timings.

    ``stopped_after`` is the number of steps after which a callback stopped the run, or None. Pictures that had not been
    started by then are missing; the others are decoded from the latents of that step.
    """

    images: list[Image.Image]
    request: Request
    records: list[dict[str, Any]]
    latents: Latents
    timings: Timings
    truncated: tuple[str, ...]
    stopped_after: int | None = None
