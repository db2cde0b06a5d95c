"""The GPU state shared by the TensorRT engines of a set: a stream, a runtime with its log, and an activation block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, SdrtError
from sdrt.libraries.cuda import OUT_OF_MEMORY_HINT, Buffer, Cuda
from sdrt.libraries.tensorrt_log import LINE_LIMIT, Messages, listen
from sdrt.machine.gc_pause import gc_paused
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet

# Wordings of TensorRT 8 to 11, from users' reports; newer versions omit CUDA's own "out of memory".
_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "memoryallocation",
    "could not be allocated",
    "failed to allocate",
    "user allocator error",
)


def check_architecture(engines: EngineSet, cuda: Cuda) -> None:
    """Raise BackendUnavailableError unless the GPU is one that a set was built for (``gpu`` of its host record).

    Raises:
        BackendUnavailableError: The set was built for other GPU architectures.
    """
    built_for = engines.manifest.host.get("gpu", "").split()
    if not built_for:
        return
    here = cuda.compute_capability()
    # "sm80+" means this architecture and all later ones.
    newer = any(int(here[2:]) >= int(name[2:-1]) for name in built_for if name.endswith("+"))
    if here not in built_for and not newer:
        raise BackendUnavailableError(
            f"the engines were built for {', '.join(built_for)}; this GPU is {here}",
            hint="build them again here",
        )


class Device:
    """The GPU, as the engines of one set use it, one after the other on one stream.

    Args:
        trt: The tensorrt or tensorrt_rtx module, or a double of it.
        cuda: The CUDA runtime.
        progress: Progress callback; receives TensorRT's warnings.

    Attributes:
        activations: Block for the activations of all engines; it grows to what the largest needs.
        generation: Incremented when the block moves: contexts must then be given its new address.

    Raises:
        BackendUnavailableError: TensorRT does not start.
    """

    def __init__(self, trt: Any, cuda: Cuda, progress: Progress = silent) -> None:
        self.trt = trt
        self.cuda = cuda
        self.stream = cuda.stream()
        self.stream_handle = int(self.stream)
        self._messages = Messages()
        self._progress = progress
        self._warned: set[str] = set()
        self.activations: Buffer | None = None
        self.generation = 0
        self._runtime: Any = None
        try:
            with gc_paused():
                self._runtime = trt.Runtime(listen(trt, self._messages))
            # A version-compatible plan contains its own runtime code; plans are verified by their seal before.
            self._runtime.engine_host_code_allowed = True
        except (TypeError, RuntimeError) as error:
            # The bindings raise these if the library creates no runtime; the reason is in its log.
            self.close()
            hint = "sdrt doctor says what the driver and the libraries lack"
            raise BackendUnavailableError(f"TensorRT does not start: {self._messages.tail()}", hint=hint) from error
        self.pass_on_warnings("the GPU's runtime")

    @property
    def captures_itself(self) -> bool:
        """True if the library captures CUDA graphs itself, as TensorRT-RTX does; TensorRT leaves that to its caller."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def failures(self) -> int:
        """Number of errors in TensorRT's log since `clear_log`."""
        return len(self._messages.errors)

    def name(self, backend: str) -> str:
        """Return a name of the library, its version and the GPU, for a file name."""
        parts = (backend, self.trt.__version__, self.cuda.compute_capability(), self.cuda.device_name())
        return "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in part) for part in parts)

    def clear_log(self) -> None:
        """Clear TensorRT's log, and collect the messages of this thread's next calls."""
        listen(self.trt, self._messages)
        self._messages.clear()

    def pass_on_warnings(self, subject: str) -> None:
        """Show the user TensorRT's warnings since `clear_log`, each only once."""
        for warning in self._messages.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self.note(f"{subject}: TensorRT warns: {' '.join(warning.split())[:LINE_LIMIT]}")

    def note(self, text: str) -> None:
        """Show the user a message that is not an error."""
        self._progress.note(text)

    def deserialise(self, engines: EngineSet, file: str) -> Any:
        """Deserialise a plan of a set, after verifying its digest.

        Raises:
            TrustError: The file differs from the seal; TensorRT has not read it.
            EngineError: TensorRT rejects the plan; the message ends with its log.
        """
        path = engines.path / file
        if self._runtime is None:
            raise EngineError(f"{path} cannot be opened: its session is closed", hint="open the engines again")
        plan = engines.read(file)
        self.clear_log()
        with gc_paused():
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error(f"TensorRT cannot open {path}", "build the engines again on this machine")
        self.pass_on_warnings(str(path))
        return engine

    def reserve(self, size_bytes: int) -> None:
        """Grow the activation block to at least a size.

        Raises:
            ResourceError: Not enough GPU memory is free.
        """
        if self.activations is not None and self.activations.size_bytes >= size_bytes:
            return
        self.cuda.wait(self.stream)
        self._free_activations()
        self.activations = self.cuda.allocate(max(size_bytes, 1))
        self.generation += 1

    @contextmanager
    def synchronised_on_error(self) -> Iterator[None]:
        """Wait for the stream if the block fails, so that arrays on the host outlive the copies that use them."""
        try:
            yield
        except BaseException:
            with suppress(SdrtError):
                self.cuda.release("cudaStreamSynchronize", self.stream)
            raise

    def error(self, what: str, hint: str) -> SdrtError:
        """Return the error for a failed call, with the end of TensorRT's log.

        If the device is lost, that is the error: TensorRT's log would only say that one of its kernels failed.
        """
        tail = self._messages.tail()
        if self.stream is not None and (lost := self.cuda.failure(self.stream)) is not None:
            return lost
        said = " ".join(self._messages.errors + self._messages.warnings).lower()
        if any(word in said for word in _MEMORY_WORDS):
            return ResourceError(f"{what}: out of GPU memory: {tail}", hint=OUT_OF_MEMORY_HINT)
        return EngineError(f"{what}: {tail}", hint=hint)

    def close(self) -> None:
        """Free everything, once the stream is done; engines must be closed before."""
        with gc_paused():
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
