"""The tests' double of TensorRT's runtime, with torch's kernels on CUDA's memory, real or doubled.

sdrt's session and loop run unchanged: on the real CUDA runtime their copies, events, capture and replay are real, and
`execute_async_v3` runs a `TorchGraph` on the given stream and addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.doubles.cuda_double import trt as double
from tests.doubles.cuda_double.plans import read_plan
from tests.doubles.cuda_double.runtime import CudaDouble, Stream
from tools.gpu_day.torch_graph import TorchGraph

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class RealDevice:
    """The operations that the double needs in addition to the CUDA runtime's functions, for the real runtime.

    Args:
        name: Name of the GPU.
    """

    has_context = True
    lost: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._streams: dict[int, Stream] = {}

    def stream_of(self, handle: Any) -> Stream:
        """Return the stream object of a handle; the same one each time."""
        return self._streams.setdefault(int(handle), Stream())

    def submit(self, stream: Stream, work: Callable[[], None]) -> None:
        """Launch work on the stream, or record it if the stream is being captured."""
        handle = next(handle for handle, known in self._streams.items() if known is stream)
        with torch.cuda.stream(torch.cuda.ExternalStream(handle)):  # type: ignore[no-untyped-call]
            work()

    def tensor(self, address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Return a tensor over device memory that the caller owns."""
        return torch.as_tensor(_Pointer(address, shape, np.dtype(dtype).str), device="cuda")


class _Pointer:
    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr, "version": 3}


class DoubleDevice(CudaDouble):
    """The tests' double of CUDA, whose memory torch can read."""

    def tensor(self, address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Return a tensor over the double's memory."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return torch.from_numpy(self.arena.view(address, size_bytes).view(dtype).reshape(shape))


class HalfDouble(double.TensorRtDouble):
    """Replacement of the module tensorrt; a graph that several plans name is loaded once.

    Args:
        device: A RealDevice or a DoubleDevice.
        kernels_on: Device of torch's kernels, "cuda" or "cpu".
    """

    def __init__(self, device: Any, kernels_on: str) -> None:
        super().__init__(device)
        self.kernels_on = kernels_on
        self.graphs: dict[str, TorchGraph] = {}

    def Runtime(self, logger: Any) -> double.Runtime:  # noqa: N802
        """Return a runtime whose engines run torch's kernels."""
        return _Runtime(self, logger)


class _Runtime(double.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> double.ICudaEngine | None:
        plan = read_plan(bytes(serialized_engine))
        return None if plan is None else _Engine(self._trt, self._logger, plan)


class _Engine(double.ICudaEngine):
    def __init__(self, trt: Any, logger: Any, plan: dict[str, Any]) -> None:
        super().__init__(trt, logger, plan)
        if plan["graph"] not in trt.graphs:
            trt.graphs[plan["graph"]] = TorchGraph(Path(plan["graph"]), trt.kernels_on)
        self.graph: TorchGraph = trt.graphs[plan["graph"]]

    def create_execution_context(self, how: Any = None) -> double.IExecutionContext:
        config = double.IRuntimeConfig(self._trt)
        config.set_execution_context_allocation_strategy(double.ExecutionContextAllocationStrategy.USER_MANAGED)
        return _Context(self, config)


class _Context(double.IExecutionContext):
    _engine: _Engine

    def _work(self, version: int, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], fallback: bool) -> Any:
        engine = self._engine
        device: Any = self._cuda
        lengths = {name: self.get_tensor_shape(name) for name in engine._tensors}

        def at(name: str) -> torch.Tensor:
            tensor: torch.Tensor = device.tensor(addresses[name], lengths[name], _DTYPES[engine._tensors[name].type])
            return tensor

        def work() -> None:
            for name, value in engine.graph(**{name: at(name) for name in engine._inputs}).items():
                at(name).copy_(value)

        return work
