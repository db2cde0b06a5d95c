"""A session on the doubles, with everything that tests inspect; and the same engines on the CPU."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.libraries.cuda import Cuda
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.onnxruntime import OnnxRuntimeEngine
from sdrt.runtime.backends.session import DeviceLoop, Session
from sdrt.runtime.backends.tensorrt import TensorRtSession
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import TensorRtDouble
from tests.doubles.progress import Notes


@dataclass
class Rig:
    """A session over doubles. Leaving the block closes it and asserts that everything was released."""

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
        loop = self.session.device_loop()
        assert loop is not None
        return loop

    def leaks(self) -> dict[str, int]:
        """Return what is still held after everything was closed."""
        held = {**self.cuda.leaks(), **self.trt.leaks()}
        if held:
            # Objects that only the garbage collector reaches are not held; collecting is slow.
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
    """Open the graph of a double's plan by the onnxruntime backend."""
    spec = engines.component(name)
    graph = step if name == "denoise_step" else bundle.graph(name)
    return OnnxRuntimeEngine(
        name, EngineComponent.model_validate({**spec.model_dump(), "file": graph.name}), graph.parent, 1
    )


def cpu_session(engines: EngineSet, bundle: Bundle) -> Session:
    """Open the graphs of a double's set by the onnxruntime backend."""
    step = engines.path.parent / "step" / "denoise_step.onnx"
    return Session(engines, lambda name: cpu_engine(engines, bundle, step, name))


def forget(_: int) -> None:
    """Ignore progress."""
