"""Host time between UNet calls: the denoising loop with an engine that returns at once.

Run: python benchmarks/host_overhead.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from sdrt.arrays import Array
from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import TensorSpec
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.denoise import Conditioning, denoise
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Schedule

STEPS, REPEATS, HIDDEN = 50, 21, 768
V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Instant(Engine):
    """A UNet that returns its sample unchanged."""

    def __init__(self) -> None:
        specs = {"sample": (4, 64, 64), "timestep": (), "encoder_hidden_states": (77, HIDDEN)}
        inputs = tuple(TensorSpec(name=n, dtype="float32", shape=("batch", *s)) for n, s in specs.items())
        spec = EngineComponent(
            file="none",
            weights=None,
            precision="fp32",
            inputs=inputs,
            outputs=(TensorSpec(name="out_sample", dtype="float32", shape=("batch", 4, 64, 64)),),
            batch=None,
            seconds=0,
            size_bytes=0,
            options={},
        )
        super().__init__("unet", spec)
        self.total_s = 0.0

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Return the sample."""
        return {"out_sample": feeds["sample"]}

    def run(self, **feeds: Array) -> dict[str, Array]:
        """Run and add the time to the total."""
        outputs = super().run(**feeds)
        self.total_s += self.last_s
        return outputs

    def release(self) -> None:
        """Do nothing: there are no resources."""


def main() -> None:
    """Print the milliseconds a step over repeated runs."""
    schedule = Schedule.from_config(V1, STEPS)
    for pictures in (1, 4):
        embeds = np.zeros((pictures, 77, HIDDEN), np.float32)
        seconds = []
        for _ in range(REPEATS):
            engine = Instant()
            latents = unit_noise(range(pictures))
            start = time.perf_counter()
            denoise(engine, schedule, latents, Conditioning(embeds, embeds, 7.5))
            seconds.append((time.perf_counter() - start - engine.total_s) / STEPS)
        low, high = 1e3 * min(seconds), 1e3 * max(seconds)
        print(f"{pictures} pictures: {1e3 * statistics.median(seconds):.3f} ms a step (min {low:.3f}, max {high:.3f})")


if __name__ == "__main__":
    main()
