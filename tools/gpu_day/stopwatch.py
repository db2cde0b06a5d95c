"""Timing of torch's work: on a GPU by events and CUDA graphs, on a CPU by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Stopwatch:
    """Measures work.

    Attributes:
        device: "cuda" or "cpu".
        repeats: Number of measurements, of which the median counts.
        warm_up: Number of runs before.
    """

    device: str
    repeats: int = 20
    warm_up: int = 3

    def captured_ms(self, work: Callable[[], object]) -> float:
        """Return the median milliseconds of work replayed as a CUDA graph; on a CPU, of the work itself."""
        if self.device == "cpu":
            return self.ms(work)
        runtime: Any = torch.cuda
        with runtime.stream(runtime.Stream()):
            for _ in range(self.warm_up):
                work()
        runtime.synchronize()
        graph = runtime.CUDAGraph()
        with runtime.graph(graph):
            work()
        return self.ms(graph.replay)

    def ms(self, work: Callable[[], object]) -> float:
        """Return the median milliseconds of work on the device."""
        for _ in range(self.warm_up):
            work()
        return float(np.median([self._once(work) for _ in range(self.repeats)]))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device == "cpu":
            began = time.perf_counter()
            work()
            return (time.perf_counter() - began) * 1e3
        runtime: Any = torch.cuda
        start, end = (runtime.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
