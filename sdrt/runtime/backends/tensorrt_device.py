"""What the TensorRT engines of one set share on the GPU: a stream, a runtime with its log, and one activation block."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, SdrtError, TrustError
from sdrt.runtime.backends.collection import uncollected
from sdrt.runtime.backends.cuda import OUT_OF_MEMORY_HINT, Buffer, Cuda

# Lines of TensorRT's log that an error carries.
TAIL = 3
# As TensorRT 8 to 11 say it, found in reports of users; newer ones leave CUDA's own "out of memory" out.
_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "memoryallocation",
    "could not be allocated",
    "failed to allocate",
    "user allocator error",
)


def logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the last warnings and errors in its ``lines`` and prints nothing.

    ``failures`` counts errors. TensorRT may call it from threads of its own.

    Args:
        trt: The tensorrt or tensorrt_rtx module.
    """
    worst = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    def initialise(self: Any) -> None:
        trt.ILogger.__init__(self)
        self.lines = deque(maxlen=TAIL)
        self.failures = 0

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in worst:
            self.failures += 1
        if severity in worst or severity == trt.ILogger.Severity.WARNING:
            self.lines.append(" ".join(message.split()))

    return type("TailLogger", (trt.ILogger,), {"__init__": initialise, "log": log})()


class Device:
    """The GPU, as the engines of one set use it, one after the other on one stream.

    Args:
        trt: The tensorrt or tensorrt_rtx module, or what stands in for it.
        cuda: The CUDA runtime.

    Attributes:
        activations: The block that all engines compute in; it grows to what the largest needs.
        generation: Counts up when the block moves: who has told its address to a context has to do so again.

    Raises:
        BackendUnavailableError: TensorRT does not start.
    """

    def __init__(self, trt: Any, cuda: Cuda) -> None:
        self.trt = trt
        self.cuda = cuda
        self.stream = cuda.stream()
        self.stream_handle = int(self.stream)
        self._log = logger(trt)
        self.activations: Buffer | None = None
        self.generation = 0
        self._runtime: Any = None
        try:
            with uncollected():
                self._runtime = trt.Runtime(self._log)
            # A version-compatible plan carries a runtime of its own; what is opened here has been held to its seal.
            self._runtime.engine_host_code_allowed = True
        except (TypeError, RuntimeError) as error:
            # So the bindings answer when the library makes no runtime; why is in its log.
            self.close()
            hint = "sdrt doctor says what the driver and the libraries lack"
            raise BackendUnavailableError(f"TensorRT does not start: {self._tail()}", hint=hint) from error

    @property
    def captures_itself(self) -> bool:
        """Whether the library captures what it runs: TensorRT-RTX does, TensorRT leaves it to its caller."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def failures(self) -> int:
        """Errors in TensorRT's log since `hear`."""
        return int(self._log.failures)

    def name(self, backend: str) -> str:
        """The library with its version, and the GPU, as part of a file's name."""
        parts = (backend, self.trt.__version__, self.cuda.compute_capability(), self.cuda.device_name())
        return "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in part) for part in parts)

    def hear(self) -> None:
        """Forget TensorRT's log, so that what stands there afterwards is about what comes now."""
        self._log.lines.clear()
        self._log.failures = 0

    def deserialise(self, path: Path, sha256: str) -> Any:
        """The engine in a plan whose bytes are what was sealed.

        Raises:
            TrustError: They are not; TensorRT does not get to see them.
            EngineError: TensorRT does not take the plan; the message ends with its log.
        """
        if self._runtime is None:
            raise EngineError(f"{path} cannot be opened: its session is closed", hint="open the engines again")
        plan = path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != sha256:
            raise TrustError(f"{path} does not match its digest in manifest.json", hint="build the engines again")
        self.hear()
        with uncollected():
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error(f"TensorRT cannot open {path}", "build the engines again on this machine")
        return engine

    def reserve(self, size_bytes: int) -> None:
        """See that the activation block holds at least so much.

        Raises:
            ResourceError: The GPU has not so much left.
        """
        if self.activations is not None and self.activations.size_bytes >= size_bytes:
            return
        self.cuda.wait(self.stream)
        self._free_activations()
        self.activations = self.cuda.allocate(max(size_bytes, 1))
        self.generation += 1

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Wait for the stream when the block fails, so that arrays on the host outlive the copies that use them."""
        try:
            yield
        except BaseException:
            with suppress(SdrtError):
                self.cuda.release("cudaStreamSynchronize", self.stream)
            raise

    def error(self, what: str, hint: str) -> SdrtError:
        """What TensorRT's last warnings and errors say of a call that failed.

        A lost device is told as such: TensorRT's log would only say that one of its kernels failed.
        """
        tail = self._tail()
        try:
            self.cuda.call("cudaPeekAtLastError")
        except SdrtError as error:
            if self.cuda.lost:
                return error
        if any(word in tail.lower() for word in _MEMORY_WORDS):
            return ResourceError(f"{what}: out of GPU memory: {tail}", hint=OUT_OF_MEMORY_HINT)
        return EngineError(f"{what}: {tail}", hint=hint)

    def _tail(self) -> str:
        return "; ".join(self._log.lines) or "its log says nothing"

    def close(self) -> None:
        """Give everything back, once the stream is done; engines must be closed before."""
        with uncollected():
            self._runtime = None
        if self.stream is None:
            return
        self._free_activations()
        self.cuda.release("cudaStreamDestroy", self.stream)
        self.stream = None

    def _free_activations(self) -> None:
        if self.activations is not None:
            self.cuda.free(self.activations)
            self.activations = None
