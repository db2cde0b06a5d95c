"""The doubles by hand, call by call, for tests of the doubles themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.doubles.cuda_double import trt as double
from tests.doubles.cuda_double.plans import write_plan
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import IExecutionContext, ILogger, TensorRtDouble

SIZE = 256


class Log(ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        self.lines.append(msg)


class Bench:
    """A double of each, a stream, and the decoder's context, ready to run one picture."""

    def __init__(self, graph: Path, folder: Path, *, rtx: bool = False) -> None:
        self.cuda = CudaDouble()
        self.trt = TensorRtDouble(self.cuda, rtx=rtx)
        self.log = Log()
        self.stream = self.value("cudaStreamCreateWithFlags", 1)
        write_plan(folder / "model.plan", graph, [(1, 1, 2)])
        engine = self.trt.Runtime(self.log).deserialize_cuda_engine((folder / "model.plan").read_bytes())
        assert engine is not None
        self.engine = engine

    def value(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self.cuda, name)(*arguments)
        assert status.name == "cudaSuccess", (name, status)
        return values[0] if values else None

    def status(self, name: str, *arguments: Any) -> str:
        return str(getattr(self.cuda, name)(*arguments)[0].name)

    def context(self, *, strategy: Any = None) -> IExecutionContext:
        return self.engine.create_execution_context(strategy or double.ExecutionContextAllocationStrategy.USER_MANAGED)

    def ready(self, batch: int = 1) -> IExecutionContext:
        context = self.context()
        assert context.set_input_shape("latent_sample", (batch, 4, 8, 8))
        self.block = self.value("cudaMalloc", 4096)
        context.set_device_memory(self.block, 4096)
        self.addresses = {}
        for name, count in (("latent_sample", 4 * 64), ("sample", 3 * 256)):
            self.addresses[name] = self.value("cudaMalloc", batch * count * 4)
            self.value("cudaMemsetAsync", self.addresses[name], 0, batch * count * 4, self.stream)
            assert context.set_tensor_address(name, self.addresses[name])
        return context

    def begin(self) -> None:
        self.value(
            "cudaStreamBeginCapture", self.stream, self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )

    def captured(self, work: Callable[[], object]) -> Any:
        self.begin()
        work()
        return self.value("cudaGraphInstantiate", self.value("cudaStreamEndCapture", self.stream), 0)

    def copy(self, target: int, source: int, count: int = SIZE, kind: str = "cudaMemcpyDeviceToDevice") -> None:
        self.value("cudaMemcpyAsync", target, source, count, self.cuda.cudaMemcpyKind[kind], self.stream)

    def wait(self) -> None:
        self.value("cudaStreamSynchronize", self.stream)

    def buffer(self, size: int = SIZE) -> int:
        return int(self.value("cudaMalloc", size))

    def bytes_at(self, address: int, size: int = SIZE) -> Any:
        return self.cuda.arena.view(address, size)
