"""The calls of the CUDA runtime that sdrt needs, over cuda.bindings.runtime; status codes become sdrt's errors.

A call of that module returns a tuple: a cudaError_t, then the values. The module is an argument, so that tests can
replace it by a double.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from sdrt.arrays import Array
from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, SdrtError
from sdrt.install_lines import extra_line

# After one of these the process cannot use the GPU any more: every later call returns the same status.
_LOST = frozenset(
    {
        "cudaErrorAssert",
        "cudaErrorContained",
        "cudaErrorDevicesUnavailable",
        "cudaErrorECCUncorrectable",
        "cudaErrorExternalDevice",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorTensorMemoryLeak",
        "cudaErrorUnknown",
    }
)
_NO_DRIVER = frozenset(
    {
        "cudaErrorCallRequiresNewerDriver",
        "cudaErrorCompatNotSupportedOnDevice",
        "cudaErrorInitializationError",
        "cudaErrorInsufficientDriver",
        "cudaErrorNoDevice",
        "cudaErrorStubLibrary",
        "cudaErrorSystemDriverMismatch",
        "cudaErrorSystemNotReady",
    }
)
OUT_OF_MEMORY_HINT = (
    "ask for fewer pictures at once, run engines for one at a time, which need least (sdrt build --recipe "
    "sd-v1-latency), or end what else holds the GPU's memory (nvidia-smi lists it)"
)


@dataclass(frozen=True)
class Buffer:
    """Device memory; its address is a multiple of 256."""

    address: int
    size_bytes: int


@dataclass
class Cuda:
    """The CUDA runtime of the current device. Not thread-safe.

    Args:
        api: The module cuda.bindings.runtime, or a double of it.

    Attributes:
        lost: Whether the device has failed for good; then nothing can be freed, and nothing needs to be.
    """

    api: Any
    lost: bool = field(default=False, init=False)
    _capturing: bool = field(default=False, init=False)

    @classmethod
    def open(cls, extra: str) -> Cuda:
        """Open the runtime on the first GPU, after checking that the driver supports it.

        Args:
            extra: The pip extra that installs cuda-bindings.

        Raises:
            BackendUnavailableError: cuda-bindings or a GPU is missing, or the driver is too old for it.
        """
        try:
            runtime = import_module("cuda.bindings.runtime")
        except ImportError as error:
            hint = extra_line(extra)
            raise BackendUnavailableError("cuda-bindings is not installed", hint=hint) from error
        cuda = cls(runtime)
        cuda.call("cudaGetDeviceCount")
        return cuda

    def call(self, name: str, *arguments: object) -> Any:
        """Call a function of the runtime and return its first value; None if it has none.

        Raises:
            BackendUnavailableError: There is no usable driver, or the GPU has failed.
            ResourceError: The GPU is out of memory.
            EngineError: The call failed for any other reason.
        """
        status, *values = getattr(self.api, name)(*arguments)
        if status != self.api.cudaError_t.cudaSuccess:
            # Clear the error: other users of cuda.bindings in this process would take it for a failure of their calls.
            self.api.cudaGetLastError()
            raise self._error(name, status.name)
        return values[0] if values else None

    def failure(self, stream: object) -> SdrtError | None:
        """Return the error of a device that has failed; None if it works, or while a stream is being captured.

        TensorRT has a CUDA runtime of its own, so this one has no last error of a kernel that TensorRT launched; but
        after a failure of the device every call reports it. A stream cannot be queried while it is captured.
        """
        if self._capturing:
            return None
        (status,) = self.api.cudaStreamQuery(stream)
        if status == self.api.cudaError_t.cudaSuccess:
            return None
        self.api.cudaGetLastError()
        error = self._error("cudaStreamQuery", status.name)
        return error if self.lost else None

    def _error(self, call: str, status: str) -> SdrtError:
        if status in _LOST:
            self.lost = True
            hint = "restart; if it happens again, look for Xid in the kernel's log (dmesg)"
            return BackendUnavailableError(f"the GPU failed: {call} gave {status}", hint=hint)
        if status in _NO_DRIVER:
            hint = "install a newer NVIDIA driver, or choose another backend"
            return BackendUnavailableError(f"the NVIDIA driver does not serve CUDA: {call} gave {status}", hint=hint)
        if status == "cudaErrorMemoryAllocation":
            return ResourceError(f"out of GPU memory: {call} gave {status}", hint=OUT_OF_MEMORY_HINT)
        return EngineError(f"{call} gave {status}", hint="this is a fault in sdrt: report it")

    def compute_capability(self) -> str:
        """Return the GPU's architecture, such as "sm86"."""
        device = self.call("cudaGetDevice")
        attributes = self.api.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        return f"sm{major}{minor}"

    def device_name(self) -> str:
        """Return the GPU's name, such as "NVIDIA GeForce RTX 3090"."""
        name = self.call("cudaGetDeviceProperties", self.call("cudaGetDevice")).name
        return str(name.rstrip(b"\0").decode(errors="replace"))

    def allocate(self, size_bytes: int) -> Buffer:
        """Allocate device memory.

        Raises:
            ResourceError: Not enough memory is free; says how much is.
        """
        status, address = self.api.cudaMalloc(size_bytes)
        if status.name == "cudaErrorMemoryAllocation":
            self.api.cudaGetLastError()
            _, free, total = self.api.cudaMemGetInfo()
            message = f"out of GPU memory: {size_bytes} bytes are needed, {free} of {total} are free"
            raise ResourceError(message, hint=OUT_OF_MEMORY_HINT)
        if status != self.api.cudaError_t.cudaSuccess:
            raise self._error("cudaMalloc", status.name)
        return Buffer(int(address), size_bytes)

    def free_bytes(self) -> int:
        """Return the free device memory in bytes."""
        return int(self.call("cudaMemGetInfo"))

    def free(self, buffer: Buffer) -> None:
        """Free device memory."""
        self.release("cudaFree", buffer.address)

    def release(self, name: str, handle: object) -> None:
        """Call a function that frees a handle; on a lost device do nothing."""
        try:
            if not self.lost:
                self.call(name, handle)
        except BackendUnavailableError:
            if not self.lost:
                raise

    def stream(self) -> Any:
        """Create a stream that does not wait for the default stream."""
        return self.call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)

    def event(self) -> Any:
        """Create an event that records its time."""
        return self.call("cudaEventCreateWithFlags", self.api.cudaEventDefault)

    def upload(self, address: int, array: Array, stream: object) -> None:
        """Enqueue a copy of a contiguous array to the device; the array must not change until `wait` returns."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: Array, address: int, stream: object) -> None:
        """Enqueue a copy from the device into a contiguous array, which is filled once `wait` returns."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: object) -> None:
        """Enqueue a copy within the device; source and target must not overlap."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def zero(self, address: int, size_bytes: int, stream: object) -> None:
        """Enqueue filling device memory with zero bytes."""
        self.call("cudaMemsetAsync", address, 0, size_bytes, stream)

    def wait(self, stream: object) -> None:
        """Wait until the stream has done all its work."""
        self.call("cudaStreamSynchronize", stream)

    def seconds_between(self, start: object, end: object) -> float:
        """Return the seconds from one event to another; both must have been recorded."""
        return float(np.float32(self.call("cudaEventElapsedTime", start, end))) / 1000

    def capture(self, stream: object, work: Callable[[], None]) -> Any:
        """Capture the work that ``work`` enqueues on the stream, and return it as a CUDA graph that can be launched.

        Raises:
            EngineError: ``work`` does something that cannot be captured.
            BackendUnavailableError: The GPU has failed.
        """
        # Thread-local: calls of other threads do not invalidate the capture.
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            self.call("cudaStreamBeginCapture", stream, mode)
            self._capturing = True
            try:
                work()
            except BaseException:
                self._leave_capture(stream)
                raise
            finally:
                self._capturing = False
            graph = self.call("cudaStreamEndCapture", stream)
            try:
                return self.call("cudaGraphInstantiate", graph, 0)
            finally:
                self.release("cudaGraphDestroy", graph)
        except EngineError as error:
            if (lost := self.failure(stream)) is not None:
                raise lost from error
            hint = "run with --no-cuda-graphs (Pipeline.load(cuda_graphs=False)), and report it"
            raise EngineError(f"the step cannot be captured as a CUDA graph: {error.message}", hint=hint) from error

    def _leave_capture(self, stream: object) -> None:
        """End a failed capture, and clear its error."""
        status, graph = self.api.cudaStreamEndCapture(stream)
        if status == self.api.cudaError_t.cudaSuccess:
            self.api.cudaGraphDestroy(graph)
        self.api.cudaGetLastError()
