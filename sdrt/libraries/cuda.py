"""The few calls of the CUDA runtime that sdrt makes, over cuda.bindings.runtime, with its status codes as our errors.

A call there gives a tuple: a cudaError_t, then the values. The module is given, not imported, so that tests can put a
double in its place.
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

# After these the process can do nothing more on the GPU: every later call gives the same status.
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
    """The CUDA runtime of the current device. Not to be shared between threads.

    Args:
        api: cuda.bindings.runtime, or what stands in for it.

    Attributes:
        lost: Whether the device has failed for good; nothing can be freed then, and nothing needs to be.
    """

    api: Any
    lost: bool = field(default=False, init=False)
    _capturing: bool = field(default=False, init=False)

    @classmethod
    def open(cls, extra: str) -> Cuda:
        """The runtime on the first GPU, after checking that the driver serves it.

        Args:
            extra: The pip extra that brings cuda-bindings.

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
        """Call a function of the runtime; gives its value, if it has one.

        Raises:
            BackendUnavailableError: There is no usable driver, or the GPU has failed.
            ResourceError: The GPU's memory is used up.
            EngineError: Anything else.
        """
        status, *values = getattr(self.api, name)(*arguments)
        if status != self.api.cudaError_t.cudaSuccess:
            # Or whoever else uses cuda.bindings in this process would take it for the failure of a call of theirs.
            self.api.cudaGetLastError()
            raise self._error(name, status.name)
        return values[0] if values else None

    def failure(self, stream: object) -> SdrtError | None:
        """Return the error of a device that has failed, None where it works.

        TensorRT has a CUDA runtime of its own, so that ours has no last error of a kernel which TensorRT launched; that
        the device has failed, every call tells. While a stream is captured it cannot be asked.
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
            hint = "start again; if it comes again, look for Xid in the kernel's log (dmesg)"
            return BackendUnavailableError(f"the GPU failed: {call} gave {status}", hint=hint)
        if status in _NO_DRIVER:
            hint = "install a newer NVIDIA driver, or choose another backend"
            return BackendUnavailableError(f"the NVIDIA driver does not serve CUDA: {call} gave {status}", hint=hint)
        if status == "cudaErrorMemoryAllocation":
            return ResourceError(f"out of GPU memory: {call} gave {status}", hint=OUT_OF_MEMORY_HINT)
        return EngineError(f"{call} gave {status}", hint="this is a fault in sdrt: report it")

    def compute_capability(self) -> str:
        """The GPU's architecture, as "sm86"."""
        device = self.call("cudaGetDevice")
        attributes = self.api.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        return f"sm{major}{minor}"

    def device_name(self) -> str:
        """The GPU's name, as "NVIDIA GeForce RTX 3090"."""
        name = self.call("cudaGetDeviceProperties", self.call("cudaGetDevice")).name
        return str(name.rstrip(b"\0").decode(errors="replace"))

    def allocate(self, size_bytes: int) -> Buffer:
        """Take device memory.

        Raises:
            ResourceError: There is not so much; says how much is free.
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
        """Device memory that nobody holds now."""
        return int(self.call("cudaMemGetInfo"))

    def free(self, buffer: Buffer) -> None:
        """Give device memory back."""
        self.release("cudaFree", buffer.address)

    def release(self, name: str, handle: object) -> None:
        """Call a function that gives something back; on a lost device there is nothing to give back to."""
        try:
            if not self.lost:
                self.call(name, handle)
        except BackendUnavailableError:
            if not self.lost:
                raise

    def stream(self) -> Any:
        """A new stream that does not wait for the default one."""
        return self.call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)

    def event(self) -> Any:
        """A new event that keeps time."""
        return self.call("cudaEventCreateWithFlags", self.api.cudaEventDefault)

    def upload(self, address: int, array: Array, stream: object) -> None:
        """Copy a contiguous array to the device; the array must stay as it is until the stream is waited for."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: Array, address: int, stream: object) -> None:
        """Copy from the device into a contiguous array, which is filled once the stream is waited for."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: object) -> None:
        """Copy on the device, in the stream's order; the two must not overlap."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def zero(self, address: int, size_bytes: int, stream: object) -> None:
        """Fill with zero bytes, in the stream's order."""
        self.call("cudaMemsetAsync", address, 0, size_bytes, stream)

    def wait(self, stream: object) -> None:
        """Wait until the stream has done all that was asked of it."""
        self.call("cudaStreamSynchronize", stream)

    def seconds_between(self, start: object, end: object) -> float:
        """Time from one event to another; both have happened."""
        return float(np.float32(self.call("cudaEventElapsedTime", start, end))) / 1000

    def capture(self, stream: object, work: Callable[[], None]) -> Any:
        """What ``work`` asks of the stream, as a graph that can be launched again and again.

        Raises:
            EngineError: It asked for something that cannot be captured.
            BackendUnavailableError: The GPU has failed.
        """
        # Thread-local: what other threads of the process do meanwhile does not spoil the capture.
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
        """End a capture that came to nothing, and forget that it did."""
        status, graph = self.api.cudaStreamEndCapture(stream)
        if status == self.api.cudaError_t.cudaSuccess:
            self.api.cudaGraphDestroy(graph)
        self.api.cudaGetLastError()
