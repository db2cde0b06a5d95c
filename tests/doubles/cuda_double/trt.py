"""A double of the runtimes of tensorrt and tensorrt_rtx; computes by ONNX Runtime on the CUDA double's memory.

It has only the real modules' names: a test checks them against the recorded APIs. Where TensorRT returns False and logs
a line, so does the double; undefined behaviour of TensorRT raises `Misuse`.
"""

from __future__ import annotations

import enum
import itertools
import json
import threading
import weakref
from typing import Any

import numpy as np
import onnxruntime

from tests.doubles.cuda_double.memory import ALIGNMENT, Misuse
from tests.doubles.cuda_double.plans import read_plan
from tests.doubles.cuda_double.runtime import CudaDouble, Stream

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
EngineStat = enum.Enum("EngineStat", ["TOTAL_WEIGHTS_SIZE", "STRIPPED_WEIGHTS_SIZE"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
DynamicShapesKernelSpecializationStrategy = enum.Enum(
    "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
)
#: Names that only TensorRT-RTX has.
RTX_ENUMS = (CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy)
_TYPES = {
    "tensor(float)": ("FLOAT", "float32"),
    "tensor(float16)": ("HALF", "float16"),
    "tensor(int64)": ("INT64", "int64"),
}


class ILogger:
    """The base class of loggers."""

    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: Any, msg: str) -> None:
        """Log a message; subclasses override it."""
        raise NotImplementedError


class TensorRtDouble:
    """Stands in for the module tensorrt, or with ``rtx`` for tensorrt_rtx.

    Args:
        cuda: The double of the CUDA runtime on whose memory it computes.
        rtx: Whether to offer TensorRT-RTX's own features: its graphs, and kernels compiled at run time.

    Attributes:
        compiled: The batches and plans for which kernels were compiled, in order.
    """

    __version__ = "1.7.1"

    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    EngineStat = EngineStat
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, cuda: CudaDouble, *, rtx: bool = False) -> None:
        self._cuda = cuda
        self._deserialised = 0
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self._contexts: list[weakref.ref[IExecutionContext]] = []
        self.compiled: list[str] = []
        self._first_logger: weakref.ref[ILogger] | None = None
        self._rtx = rtx
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def _register(self, logger: Any) -> None:
        """Keep the first logger's address, but not the logger, while any object lives; warn of every other one."""
        if not self._alive:
            self._first_logger = weakref.ref(logger)
        first = self._first_logger() if self._first_logger else None
        if first is None:
            raise Misuse("the logger that TensorRT writes to was freed, and TensorRT has objects still")
        if first is not logger:
            first.log(
                ILogger.Severity.WARNING,
                "The logger passed into createInferRuntime differs from one already registered",
            )

    def say(self, severity: str, message: str) -> None:
        """Log from one of TensorRT's own threads, by the first logger."""
        first = self._first_logger() if self._first_logger else None
        if first is None:
            raise Misuse("a thread of TensorRT's writes to a logger that was freed")
        thread = threading.Thread(target=first.log, args=(ILogger.Severity[severity], message))
        thread.start()
        thread.join()

    def leaks(self) -> dict[str, int]:
        """Return living objects, by class."""
        names = sorted(type(item).__name__ for item in self._alive)
        return {name: len(list(group)) for name, group in itertools.groupby(names)}


class Runtime:
    """Opens plans."""

    engine_host_code_allowed = False

    def __init__(self, trt: TensorRtDouble, logger: ILogger) -> None:
        if not getattr(logger, "_initialised", False):
            raise Misuse("the logger's base class was not initialised")
        self._trt, self._logger = trt, logger
        trt._register(logger)
        trt._alive.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """Open a plan; return None and log a line if that fails."""
        self._trt._deserialised += 1
        plan = read_plan(serialized_engine)
        if plan is None:
            self._logger.log(
                ILogger.Severity.ERROR, "[runtime.cpp::parsePlan::314] Error Code 4: magic tag does not match"
            )
            return None
        if plan["host_code"] and not self.engine_host_code_allowed:
            self._logger.log(ILogger.Severity.ERROR, "the plan has a lean runtime, and host code is not allowed")
            return None
        for warning in plan["warnings"]:
            self._logger.log(ILogger.Severity.WARNING, warning)
        return ICudaEngine(self._trt, self._logger, plan)


class ICudaEngine:
    """An opened plan."""

    def __init__(self, trt: TensorRtDouble, logger: ILogger, plan: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # As the onnxruntime backend runs its graphs, so that results can be compared bit by bit.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_deterministic_compute = True
        self._session = onnxruntime.InferenceSession(plan["graph"], options, providers=["CPUExecutionProvider"])
        self._trt, self._logger, self._plan = trt, logger, plan
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = {node.name: node for node in self._session.get_outputs()}
        self._tensors = {**self._inputs, **self._outputs}
        trt._alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._plan["activation_bytes"])

    def get_engine_stat(self, stat: Any) -> int:
        return 1234 if stat is EngineStat.TOTAL_WEIGHTS_SIZE else -1

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_TYPES[self._tensors[name].type][0]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        batches = self._plan["profiles"][profile_index]
        return [tuple(batch if isinstance(a, str) else a for a in self._inputs[name].shape) for batch in batches]

    def create_runtime_config(self) -> IRuntimeConfig:
        if not self._trt._rtx:
            # Its return value, and whether it follows the strategy, is documented for "TensorRT JIT" alone.
            raise Misuse(
                "a runtime config is made by TensorRT, which documents it for what is compiled at run time alone"
            )
        return RtxRuntimeConfig(self._trt)

    def create_execution_context(self, how: Any = ExecutionContextAllocationStrategy.STATIC) -> IExecutionContext:
        """Create a context, by one of the two overloads: an allocation strategy, or a runtime config."""
        if isinstance(how, RtxRuntimeConfig):
            return RtxExecutionContext(self, how)
        config = IRuntimeConfig(self._trt)
        config.set_execution_context_allocation_strategy(how)
        return IExecutionContext(self, config)


class IRuntimeConfig:
    """Settings of a new context."""

    def __init__(self, trt: TensorRtDouble) -> None:
        self._trt = trt
        self._strategy: Any = ExecutionContextAllocationStrategy.STATIC
        trt._alive.add(self)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class RtxRuntimeConfig(IRuntimeConfig):
    """TensorRT-RTX's additional settings."""

    def __init__(self, trt: TensorRtDouble) -> None:
        super().__init__(trt)
        self.cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy: Any = DynamicShapesKernelSpecializationStrategy.LAZY
        self._cache: weakref.ref[IRuntimeCache] | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        # It is not documented to keep the cache alive.
        self._cache = weakref.ref(cache)
        return True


class IRuntimeCache:
    """The kernels that TensorRT-RTX compiled, by what they were compiled for."""

    def __init__(self, trt: TensorRtDouble) -> None:
        self._trt = trt
        self._kernels: set[str] = set()
        trt._alive.add(self)

    def deserialize(self, blob: bytes) -> bool:
        if not self._trt._cuda.has_context:
            raise Misuse("kernels are deserialised without a CUDA context, so that the GPU is not known")
        try:
            content = json.loads(blob)
        except ValueError as error:
            raise Misuse("the parser of kernels is given bytes that it did not write") from error
        if content["made_by"] != self._made_by():
            return False
        self._kernels |= set(content["kernels"])
        return True

    def serialize(self) -> bytes:
        return json.dumps({"made_by": self._made_by(), "kernels": sorted(self._kernels)}).encode()

    def _made_by(self) -> list[str]:
        return [self._trt.__version__, self._trt._cuda.name]


class IExecutionContext:
    """Runs an engine. Changes are counted: a CUDA graph captured before one must not be launched after it."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine = engine
        self._cuda = engine._trt._cuda
        self._strategy = config._strategy
        self._replays_itself = getattr(config, "cuda_graph_strategy", None) is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._specialises = getattr(config, "dynamic_shapes_kernel_specialization_strategy", None)
        self._cache: weakref.ref[IRuntimeCache] | None = getattr(config, "_cache", None)
        self._specialised: set[str] = set()
        self._thread = threading.get_ident()
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._version = 0
        self._warm: int | None = None
        engine._trt._alive.add(self)
        engine._trt._contexts.append(weakref.ref(self))

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._enter()
        self._cuda.stream_of(stream_handle)
        if profile_index >= self._engine.num_optimization_profiles:
            return self._refuse(f"profile {profile_index} does not exist")
        self._changed()
        # The manual says that shapes are reset and nothing of the rest, so callers may rely on none of it.
        self._profile, self._shapes, self._addresses, self._memory = profile_index, {}, {}, None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._enter()
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        inside = len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if not inside:
            return self._refuse(f"IExecutionContext::setInputShape: {name} {shape} is outside profile {self._profile}")
        if self._shapes.get(name) != tuple(shape):
            self._changed()
            self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._enter()
        if memory % ALIGNMENT:
            raise Misuse(f"the address of {name} is no multiple of {ALIGNMENT}")
        if name not in self._engine._tensors:
            return self._refuse(f"there is no tensor {name}")
        self._changed()
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._enter()
        if self._strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Misuse("device memory is given to a context that has its own")
        if memory % ALIGNMENT or size < self._engine.device_memory_size_v2:
            # It returns nothing and writes a line to the log.
            self._refuse(f"IExecutionContext::setDeviceMemoryV2: {size} bytes are too few, or not aligned")
            return
        self._changed()
        self._memory = (memory, size)

    def infer_shapes(self) -> list[str]:
        self._enter()
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        self._enter()
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()))[0] if self._shapes else -1
        return tuple(axis if isinstance(axis, int) else batch for axis in self._engine._tensors[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._enter()
        stream = self._cuda.stream_of(stream_handle)
        if self.infer_shapes():
            return self._refuse(f"the shape of {', '.join(self.infer_shapes())} is not set", stream)
        unset = [name for name in self._engine._tensors if name not in self._addresses]
        if unset:
            return self._refuse(f"the address of {', '.join(unset)} is not set", stream)
        if self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED and self._memory is None:
            raise Misuse("a context runs without device memory")
        if self._cuda.lost is not None:
            return self._refuse(
                f"[executionContext.cpp::enqueue] Error Code 1: Cuda Runtime ({self._cuda.lost})", stream
            )
        if stream.captured is not None and self._warm != self._version:
            return self._refuse("captured without a run before: lazy initialisation is not capturable", stream)
        if stream.captured is not None and self._replays_itself:
            raise Misuse("a context that captures itself runs in a capture of the caller's")
        self._warm = self._version
        fallback = self._compile()
        self._cuda.submit(stream, self._work(self._version, dict(self._addresses), dict(self._shapes), fallback))
        return True

    def _compile(self) -> bool:
        """Compile kernels for the shapes as TensorRT-RTX does; return whether the fallback runs until then."""
        strategies = DynamicShapesKernelSpecializationStrategy
        cache = self._cache() if self._cache else None
        if self._cache is not None and cache is None:
            raise Misuse("a context outlives the cache of kernels that it was made with")
        if self._specialises in (None, strategies.NONE):
            return False
        kernels = self._specialised if cache is None else cache._kernels
        wanted = json.dumps([self._engine._plan["graph"], self._shapes])
        if wanted in kernels:
            return False
        self._engine._trt.compiled.append(wanted)
        kernels.add(wanted)
        return self._specialises is strategies.LAZY

    def _work(self, version: int, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], fallback: bool) -> Any:
        """Return the kernels' work, with the addresses at the time of the call; fallbacks round differently."""
        engine, arena, memory = self._engine, self._cuda.arena, self._memory
        context = weakref.ref(self)

        def work() -> None:
            alive = context()
            if alive is None:
                raise Misuse("a context runs that was destroyed")
            if alive._version != version:
                raise Misuse("a context was changed after its work was captured or submitted")
            if memory is not None:
                # Another engine's data in the shared block are lost.
                arena.view(*memory)[:] = 0xAB
            feeds = {}
            for name, node in engine._inputs.items():
                dtype = np.dtype(_TYPES[node.type][1])
                size_bytes = int(np.prod(shapes[name], dtype=np.int64)) * dtype.itemsize
                feeds[name] = arena.view(addresses[name], size_bytes).view(dtype).reshape(shapes[name])
            names = list(engine._outputs)
            for name, array in zip(names, engine._session.run(names, feeds), strict=True):
                given = np.nextafter(array, np.float32(0)) if fallback else array
                raw = np.ascontiguousarray(given, array.dtype).reshape(-1).view(np.uint8)
                arena.view(addresses[name], raw.size)[:] = raw

        return work

    def _enter(self) -> None:
        if self._thread != threading.get_ident():
            raise Misuse("a context is used by a thread that did not make it")

    def _changed(self) -> None:
        self._version += 1

    def _refuse(self, why: str, stream: Stream | None = None) -> bool:
        self._engine._logger.log(ILogger.Severity.ERROR, why)
        if stream is not None and stream.captured is not None:
            stream.spoilt = True
        return False


class RtxExecutionContext(IExecutionContext):
    """TensorRT-RTX's additions to a context."""

    def is_stream_capturable(self, stream: int) -> bool:
        self._enter()
        self._cuda.stream_of(stream)
        return bool(self._engine._plan["capturable"])
