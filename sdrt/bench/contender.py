"""Contenders of a benchmark: each runs in a process of its own, is loaded once and draws many times.

The records are plain dataclasses that are sent as JSON. Imports of this module count towards every contender's cold
start.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from sdrt.artefacts.manifest import Precision


@dataclass(frozen=True)
class Job:
    """The contender that a process runs.

    Attributes:
        kind: Name of the contender in `sdrt.bench.worker.KINDS`.
        precision: Precision that it computes in.
        threads: Number of CPU threads.
        checkpoint: Folder of the checkpoint in diffusers' layout.
        bundle: Folder of the checkpoint's bundle.
        engines: Folder of the engine set; sdrt only.
        store: Store of the engine set; sdrt only.
        loop: Loop of the guided step, auto or plain; sdrt only.
        prepared: Folder of the files converted for the contender.
        device: cpu or cuda.
        keep_loaded: Whether engines stay loaded between requests; sdrt only.
    """

    kind: str
    precision: Precision
    threads: int
    checkpoint: str = ""
    bundle: str = ""
    engines: str = ""
    store: str = ""
    loop: str = "auto"
    prepared: str = ""
    device: str = "cpu"
    keep_loaded: bool = True


@dataclass(frozen=True)
class Work:
    """One batch to draw: prompt and seed of each picture, and the path of the first picture's PNG.

    ``watch`` notes when the first step ended.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    png: str
    watch: bool = False


@dataclass
class Ran:
    """Times and memory of one run. Stages that the contender does not report are None.

    Attributes:
        total: Seconds from prompts to pictures in memory.
        text_encoder: Seconds of text encoding.
        unet: Seconds of all steps.
        vae_decoder: Seconds of decoding.
        first_step_at: When the first step ended, on the system's monotonic clock; None unless `Work.watch` was set.
        picture_at: When the first picture was written, on the same clock.
        peak_memory_bytes: Peak memory of the process during the run.
        device_bytes: GPU memory held at the end of the run.
    """

    total: float = 0.0
    text_encoder: float | None = None
    unet: float | None = None
    vae_decoder: float | None = None
    first_step_at: float | None = None
    picture_at: float = 0.0
    peak_memory_bytes: int | None = None
    device_bytes: int | None = None


@dataclass
class Stopwatch:
    """Seconds by stage, summed over calls, and the end of the first step on the system's monotonic clock."""

    seconds: dict[str, float] = field(default_factory=dict)
    first_step_at: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def step_ended(self) -> None:
        """Note the time of the first call; later calls do nothing."""
        if self.first_step_at is None:
            self.first_step_at = time.monotonic()


class Contender(ABC):
    """A way to draw pictures. Its module imports its libraries at the top, so that importing can be timed."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def load(self) -> None:
        """Load the model as the library's documentation advises."""

    @abstractmethod
    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Draw the batch, and time the stages text_encoder, unet and vae_decoder if the library allows it."""

    def device_bytes(self) -> int | None:
        """Return the bytes held on a GPU; None for a contender that computes on the CPU."""
        return None


def noise(work: Work, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the unit noise [n, *shape] float32 that sdrt draws from the same seeds, for comparable pictures."""
    from sdrt.sampling.latents import unit_noise

    return unit_noise(work.seeds, shape)
