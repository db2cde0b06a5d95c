"""One TensorRT or TensorRT-RTX plan: its context, memory and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.arrays import Array
from sdrt.errors import EngineError, ResourceError, UsageError
from sdrt.libraries.cuda import Buffer
from sdrt.machine.gc_pause import gc_paused
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.tensorrt_device import Device
from sdrt.runtime.backends.tensorrt_kernels import KernelCache

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.artefacts.manifest import ComponentName, TensorSpec

# TensorRT requires every tensor's address to be a multiple of this.
ALIGNMENT = 256
# Inputs that change from step to step are adjacent in memory, so that one copy sets them all.
STEP_INPUTS = ("timestep", "sigma", "guidance_scale", "lms_coefficients")
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
# Components that run once for each step. The others run once for each picture: a graph would not pay.
REPEATED = ("denoise_step", "unet")


def aligned(size_bytes: int) -> int:
    """Return a size rounded up to a multiple of `ALIGNMENT`."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


class TensorRtEngine(Engine):
    """One plan, deserialised, with one context in the device's shared activation block.

    Inputs and outputs share one block of device memory, which is allocated again when the batch size changes.

    Args:
        engines: The engine set.
        device: The GPU state that the engines of the set share.
        cuda_graphs: Whether TensorRT-RTX may replay runs from CUDA graphs.
        kernels: Cache of TensorRT-RTX's compiled kernels; None keeps none.
        owns_device: Whether closing the engine closes the device too.

    Attributes:
        generation: Incremented when the context changes; CUDA graphs captured before must not be launched any more.
        replays: Whether TensorRT-RTX replays runs from a CUDA graph of its own.

    Raises:
        TrustError: The plan differs from the seal.
        EngineError: TensorRT rejects it, or its inputs and outputs are not the spec's.
        ResourceError: Not enough GPU memory is free.
    """

    def __init__(
        self,
        name: ComponentName,
        engines: EngineSet,
        device: Device,
        cuda_graphs: bool,
        *,
        kernels: KernelCache | None = None,
        owns_device: bool = False,
    ) -> None:
        spec = engines.component(name)
        super().__init__(name, spec)
        self.device = device
        self.replays = self._asked_to_replay = False
        self._kernels = kernels
        self._owns_device = owns_device
        self.path = engines.path / spec.file
        self.generation = 0
        self._block: Buffer | None = None
        self._offsets: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._batch: int | None = None
        self._bound = 0
        self._context: Any = None
        self._config: Any = None
        self._engine: Any = device.deserialise(engines, spec.file)
        try:
            for tensor in (*spec.inputs, *spec.outputs):
                self._check_tensor(tensor)
            self.weights_bytes = max(0, int(self._engine.get_engine_stat(device.trt.EngineStat.TOTAL_WEIGHTS_SIZE)))
            device.reserve(int(self._engine.device_memory_size_v2))
            if self._kernels is not None:
                self._kernels.read()
            with gc_paused():
                self._make_context(cuda_graphs)
        except BaseException:
            self.release()
            raise

    @property
    def buffer_bytes(self) -> int:
        """Device memory of inputs and outputs, in bytes."""
        return self._block.size_bytes if self._block else 0

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Copy the inputs to the device, run, and copy the outputs back."""
        self.bind(self._batch_of(feeds))
        stream, cuda = self.device.stream, self.device.cuda
        outputs = {spec.name: np.empty(self._shapes[spec.name], spec.dtype) for spec in self.spec.outputs}
        with self.device.synchronised_on_error():
            for name, array in feeds.items():
                cuda.upload(self.address(name), array, stream)
            self.enqueue()
            for name, array in outputs.items():
                cuda.download(array, self.address(name), stream)
            cuda.wait(stream)
        return outputs

    def bind(self, batch: int | None) -> None:
        """Prepare the context and the buffers for a batch size; None if no axis is a batch.

        Raises:
            UsageError: No optimisation profile accepts the batch size; names the ranges.
            EngineError: TensorRT refuses a shape or an address.
            ResourceError: Not enough GPU memory is free.
        """
        if self._context is None:
            raise EngineError(f"{self.name} is closed", hint="open it again")
        if self._block is not None and batch == self._batch:
            return
        profile = self._profile(batch)
        self._drop_block()
        with gc_paused():
            self._choose(profile)
            self._shape_inputs(batch)
            self._offsets, size_bytes = _layout((*self.spec.inputs, *self.spec.outputs), self._shapes)
            self._block = self._allocated(size_bytes, batch)
            for name in self._offsets:
                self._accepted(self._context.set_tensor_address(name, self.address(name)), f"address of {name}")
            self._infer_shapes()
            # The answer may depend on the shapes, which a new context does not have yet.
            self.replays = self._can_replay()
        if self._asked_to_replay and not self.replays:
            self.device.note(f"{self.name} is run without a CUDA graph: TensorRT-RTX cannot capture it")
        self._batch = batch

    def _allocated(self, size_bytes: int, batch: int | None) -> Buffer:
        """Allocate the buffers of a batch size; the error names the largest batch size that fits, if any."""
        try:
            return self.device.cuda.allocate(size_bytes)
        except ResourceError as error:
            fitting = (batch or 1) * self.device.cuda.free_bytes() // size_bytes
            if not fitting:
                raise
            raise ResourceError(error.message, hint=f"a batch of {fitting} fits now: {error.hint}") from error

    def address(self, name: str) -> int:
        """Return the device address of an input or output."""
        if self._block is None:
            raise EngineError(f"{self.name} has no buffers", hint="run it first")
        return self._block.address + self._offsets[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input or output for the bound batch size."""
        return self._shapes[name]

    def span(self, *names: str) -> int:
        """Return the bytes from the first to the end of the last of adjacent tensors, padding included."""
        last = max(names, key=self._offsets.__getitem__)
        size_bytes = self._size_bytes(last)
        return self._offsets[last] + aligned(size_bytes) - min(self._offsets[name] for name in names)

    def tensor_bytes(self, *names: str) -> int:
        """Return the bytes of inputs and outputs by name, padding included; 0 for those that the engine lacks."""
        held = self._offsets.keys() if self._block else ()
        return sum(aligned(self._size_bytes(name)) for name in names if name in held)

    def enqueue(self) -> None:
        """Enqueue a run on the contents of the buffers.

        Raises:
            EngineError: TensorRT reports a failure.
        """
        self.share_activations()
        self.device.clear_log()
        with gc_paused():
            done = self._context.execute_async_v3(self.device.stream_handle)
        if not done:
            raise self.device.error(f"{self.name} failed", "report it, with the GPU and the versions")

    def share_activations(self) -> None:
        """Give the context the address of the shared activation block, if that has moved.

        Raises:
            EngineError: TensorRT refuses the block.
        """
        block = self.device.activations
        if self._bound == self.device.generation or block is None:
            return
        self.device.clear_log()
        self._context.set_device_memory(block.address, block.size_bytes)
        # The call returns nothing: only the log says if the memory is refused.
        self._accepted(not self.device.failures, f"{block.size_bytes} bytes to compute in")
        self._bound = self.device.generation
        self.generation += 1

    def release(self) -> None:
        """Free context, kernels, engine and buffers, in this order; the device must be done with them."""
        try:
            if self._kernels is not None and not self.device.cuda.lost:
                self._kernels.keep()
        finally:
            with gc_paused():
                self._context = None
                self._config = None
                if self._kernels is not None:
                    self._kernels.release()
                self._engine = None
            self._drop_block()
            if self._owns_device:
                self.device.close()

    def _drop_block(self) -> None:
        self.generation += 1
        self._batch = None
        if self._block is not None:
            block, self._block = self._block, None
            self.device.cuda.free(block)

    def _size_bytes(self, name: str) -> int:
        dtype = next(spec.dtype for spec in (*self.spec.inputs, *self.spec.outputs) if spec.name == name)
        return int(np.prod(self._shapes[name], dtype=np.int64)) * np.dtype(dtype).itemsize

    def _batch_of(self, feeds: dict[str, Array]) -> int | None:
        for spec in self.spec.inputs:
            if "batch" in spec.shape:
                return int(feeds[spec.name].shape[spec.shape.index("batch")])
        return None

    def _make_context(self, cuda_graphs: bool) -> None:
        """Create the context, with activations in the shared block.

        TensorRT's objects are assigned to attributes directly: a variable would stay alive in an error's traceback.
        """
        trt, device = self.device.trt, self.device
        replays = device.captures_itself and cuda_graphs and self.name in REPEATED
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        device.clear_log()
        if device.captures_itself:
            self._configure_rtx(strategy, replays)
            self._context = self._engine.create_execution_context(self._config)
        else:
            # TensorRT documents its runtime config only for plans that it compiles at run time.
            self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise device.error(f"TensorRT created no context for {self.path}", "free GPU memory")
        self._asked_to_replay = replays
        self.replays = self._can_replay()
        device.pass_on_warnings(str(self.path))

    def _configure_rtx(self, allocation: Any, replays: bool) -> None:
        """Create the configuration of TensorRT-RTX's context: memory, CUDA graphs and the kernel cache."""
        trt = self.device.trt
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise self.device.error(f"TensorRT created no context for {self.path}", "report it, with the versions")
        self._config.set_execution_context_allocation_strategy(allocation)
        # Not lazily: replacing a kernel in the middle of a run changes the picture (docs/decisions/0038).
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if replays else trt.CudaGraphStrategy.DISABLED
        self._config.cuda_graph_strategy = strategy
        if self._config.cuda_graph_strategy != strategy:
            raise self.device.error(f"{self.name} cannot be replayed from a CUDA graph", "run with --no-cuda-graphs")
        if self._kernels is not None:
            self._kernels.give(self._config)

    def _can_replay(self) -> bool:
        return self._asked_to_replay and bool(self._context.is_stream_capturable(self.device.stream_handle))

    def _choose(self, profile: int) -> None:
        """Select an optimisation profile of the context."""
        if profile == self._context.active_optimization_profile:
            return
        self.device.clear_log()
        handle = self.device.stream_handle
        self._accepted(self._context.set_optimization_profile_async(profile, handle), f"profile {profile}")
        self.device.cuda.wait(self.device.stream)
        # What a context keeps when its profile changes is not documented: everything is set again.
        self._bound = 0

    def _shape_inputs(self, batch: int | None) -> None:
        self._shapes = {spec.name: _shape(spec, batch) for spec in (*self.spec.inputs, *self.spec.outputs)}
        self.device.clear_log()
        for spec in self.spec.inputs:
            self._accepted(self._context.set_input_shape(spec.name, self._shapes[spec.name]), f"shape of {spec.name}")

    def _infer_shapes(self) -> None:
        """Raise EngineError unless all inputs are set, and the inferred output shapes are those of the spec."""
        try:
            lacking = self._context.infer_shapes()
        except RuntimeError as error:
            raise self.device.error(f"{self.name}: TensorRT cannot infer shapes", "build the engines again") from error
        if lacking:
            raise EngineError(f"{self.name}: TensorRT lacks {', '.join(lacking)}", hint="build the engines again")
        for spec in self.spec.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            if shape != self._shapes[spec.name]:
                message = f"{self.path} gives {spec.name} as {shape}; the manifest says {self._shapes[spec.name]}"
                raise EngineError(message, hint="build the engines again")

    def _check_tensor(self, spec: TensorSpec) -> None:
        """Raise EngineError unless the plan has a tensor of the spec's name, mode and dtype, and no other tensors."""
        trt, names = self.device.trt, [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT if spec in self.spec.inputs else trt.TensorIOMode.OUTPUT
        if (
            len(names) != len(self.spec.inputs) + len(self.spec.outputs)
            or spec.name not in names
            or self._engine.get_tensor_mode(spec.name) != mode
            or self._engine.get_tensor_location(spec.name) != trt.TensorLocation.DEVICE
            or self._engine.get_tensor_dtype(spec.name) != getattr(trt.DataType, _DTYPES[spec.dtype])
        ):
            message = f"{self.path} lacks the {spec.dtype} tensor {spec.name}, or has tensors that the manifest lacks"
            raise EngineError(message, hint="build the engines again")

    def _profile(self, batch: int | None) -> int:
        """Return the optimisation profile for a batch size: one optimised for it, or else the narrowest that fits."""
        (spec, axis) = next(
            ((spec, spec.shape.index("batch")) for spec in self.spec.inputs if "batch" in spec.shape), (None, 0)
        )
        if spec is None or batch is None:
            return 0
        ranges = []
        for index in range(self._engine.num_optimization_profiles):
            least, best, most = (int(shape[axis]) for shape in self._engine.get_tensor_profile_shape(spec.name, index))
            ranges.append((best != batch, most - least, index, least, most))
        fitting = [row for row in ranges if row[3] <= batch <= row[4]]
        if not fitting:
            takes = ", ".join(f"{least} to {most}" for *_, least, most in ranges)
            hint = "ask for fewer pictures at once, or build with another --recipe"
            raise UsageError(f"{self.name} was built for batches of {takes}; got {batch}", hint=hint)
        return min(fitting)[2]

    def _accepted(self, done: bool, what: str) -> None:
        if not done:
            raise self.device.error(f"{self.name}: TensorRT refuses the {what}", "build the engines again")


def _shape(spec: TensorSpec, batch: int | None) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else batch or 1 for axis in spec.shape)


def _layout(specs: tuple[TensorSpec, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, int], int]:
    """Return each tensor's offset in one block, those of `STEP_INPUTS` first in their order, and the block's bytes."""
    rank = {name: index for index, name in enumerate(STEP_INPUTS)}
    offsets, end = {}, 0
    for spec in sorted(specs, key=lambda spec: rank.get(spec.name, len(rank))):
        offsets[spec.name] = end
        end += aligned(int(np.prod(shapes[spec.name], dtype=np.int64)) * np.dtype(spec.dtype).itemsize)
    return offsets, end
