"""A session on the doubles, with everything at hand that a test looks at; and the same engines on the CPU."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.libraries.cuda import Cuda
from sdrt.progress import Silent
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.onnxruntime import OnnxRuntimeEngine
from sdrt.runtime.backends.session import DeviceLoop, Session
from sdrt.runtime.backends.tensorrt import TensorRtSession
from sdrt.runtime.denoise import Conditioning, Latents
from sdrt.sampling.lms import Schedule
from tests.doubles.cuda_double.plans import SD_V1
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import TensorRtDouble
from tests.models.tiny_bundle import HIDDEN_SIZE, LATENTS, MAX_TOKENS


class Notes(Silent):
    """Progress that keeps what is said."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def note(self, text: str) -> None:
        """Keep it."""
        self._notes.append(text)


@dataclass
class Rig:
    """A session over doubles. Leaving the block closes it and holds that everything was given back."""

    engines: EngineSet
    cuda: CudaDouble = field(default_factory=CudaDouble)
    rtx: bool = False
    cuda_graphs: bool = True
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trt = TensorRtDouble(self.cuda, rtx=self.rtx)
        self.session = TensorRtSession(
            self.engines, self.trt, Cuda(self.cuda), cuda_graphs=self.cuda_graphs, progress=Notes(self.notes)
        )

    def loop(self) -> DeviceLoop:
        """The loop on the device."""
        loop = self.session.device_loop()
        assert loop is not None
        return loop

    def leaks(self) -> dict[str, int]:
        """What is held after everything was closed."""
        held = {**self.cuda.leaks(), **self.trt.leaks()}
        if held:
            # What only the garbage collector can reach is not held; to ask it is slow.
            gc.collect()
            held = {**self.cuda.leaks(), **self.trt.leaks()}
        return held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.session.close()
            assert self.leaks() == {}


def cpu_engine(engines: EngineSet, bundle: Bundle, step: Path, name: ComponentName) -> Engine:
    """The graph of a double's plan, run by the onnxruntime backend."""
    spec = engines.component(name)
    graph = step if name == "denoise_step" else bundle.graph(name)
    return OnnxRuntimeEngine(
        name, EngineComponent.model_validate({**spec.model_dump(), "file": graph.name}), graph.parent, 1
    )


def cpu_session(engines: EngineSet, bundle: Bundle) -> Session:
    """The graphs of a set of the double's, run by the onnxruntime backend."""
    step = engines.path.parent / "step" / "denoise_step.onnx"
    return Session(engines, lambda name: cpu_engine(engines, bundle, step, name))


def sd_v1_schedule(steps: int = 7, prediction_type: str = "epsilon") -> Schedule:
    """SD v1's noise levels, in so many steps."""
    return Schedule.from_config({**SD_V1, "prediction_type": prediction_type}, steps)


def noise(schedule: Schedule, batch: int, seed: int = 0) -> Latents:
    """Noise at the schedule's first sigma."""
    unit = np.random.default_rng(seed).standard_normal((batch, *LATENTS), np.float32)
    return unit * np.float32(schedule.init_noise_sigma)


def conditioning(batch: int, *, guided: bool = True, seed: int = 1) -> Conditioning:
    """Hidden states of as many prompts."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((2, batch, MAX_TOKENS, HIDDEN_SIZE)).astype(np.float32)
    return Conditioning(states[0], states[1] if guided else None, 7.5)


def forget(_: int) -> None:
    """Progress that nobody looks at."""
