"""What runs inside a benchmark's process: one contender, loaded once and asked for pictures again and again.

Plain dataclasses: they travel as JSON, and what this module imports is charged to every contender's cold start.
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
    """What a process is to be.

    Attributes:
        kind: Which contender, by its name in `sdrt.bench.worker.KINDS`.
        precision: How it computes.
        threads: With so many.
        checkpoint: Folder of the checkpoint in diffusers' layout.
        bundle: Folder of its bundle.
        engines: Folder of the engine set, for sdrt's own.
        store: The store that the set lies in.
        loop: How sdrt runs a guided step.
        prepared: Folder with what was converted for the contender.
        device: cpu or cuda.
        keep_loaded: Whether sdrt keeps its engines from request to request.
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
    """Pictures to make: prompt and seed of each, all of one batch, and where to write the first as PNG."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    png: str
    watch: bool = False


@dataclass
class Ran:
    """What a run took. Stages are seconds; what a contender does not tell apart is None.

    Attributes:
        total: From prompts to pictures in memory.
        unet: All steps.
        first_step_at: When the first step had ended, by the system's monotonic clock; only where it was watched.
        picture_at: When the first picture was written.
        peak_memory_bytes: The most that the process held during the run.
        device_bytes: What it held on a GPU at its end.
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
    """Seconds by stage. Calls of a stage add up."""

    seconds: dict[str, float] = field(default_factory=dict)
    first_step_at: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def step_ended(self) -> None:
        """Note the time, the first time."""
        if self.first_step_at is None:
            self.first_step_at = time.monotonic()


class Contender(ABC):
    """Something that makes pictures. Its module imports its libraries, so that importing can be timed."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def load(self) -> None:
        """Open everything, as its documentation says."""

    @abstractmethod
    def run(self, work: Work, watch: Stopwatch) -> Sequence[Image.Image]:
        """Make the pictures, telling the stages text_encoder, unet and vae_decoder apart where that can be done."""

    def device_bytes(self) -> int | None:
        """Bytes held on a GPU; None for a contender that computes on the CPU."""
        return None


def noise(work: Work, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The unit noise that sdrt would draw from the same seeds, [n, *shape], so that all draw the same pictures."""
    from sdrt.sampling.latents import unit_noise

    return unit_noise(work.seeds, shape)
