"""A double of cuda.bindings.runtime: its functions by their names, with its tuples of status and values.

Work on a stream is executed when the stream is waited for, not when it is submitted, as late as a GPU may do it: code
that reads a result too early reads old bytes, and code that changes an input too early changes the result.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.doubles.cuda_double.memory import Arena, Misuse

API = json.loads(Path(__file__).with_name("cuda_api.json").read_text())


def _enum(name: str) -> Any:
    return enum.Enum(name, API["enums"][name])


Work = Callable[[], None]
Status = tuple[Any, ...]


class cudaStream_t(int):
    """A stream's handle."""


@dataclass
class Stream:
    """Pending work of a stream, and its capture in progress."""

    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    spoilt: bool = False
    thread: int = 0


@dataclass
class Event:
    """The time of an event; None while it is pending or was never recorded."""

    time_s: float | None = None
    pending: Stream | None = None


@dataclass
class Properties:
    """Properties of a device."""

    name: bytes


class CudaDouble:
    """Stands in for the module cuda.bindings.runtime.

    Args:
        memory_bytes: Memory of the device.
        compute_capability: Major and minor version.
        name: Name of the device.
        fails: Status by function and number of the call, counted from 1.

    Attributes:
        calls: The name of each function called, in order.
    """

    cudaError_t: Any = _enum("cudaError_t")
    cudaMemcpyKind: Any = _enum("cudaMemcpyKind")
    cudaStreamCaptureMode: Any = _enum("cudaStreamCaptureMode")
    cudaDeviceAttr: Any = _enum("cudaDeviceAttr")
    cudaStreamNonBlocking = API["constants"]["cudaStreamNonBlocking"]
    cudaEventDefault = API["constants"]["cudaEventDefault"]

    def __init__(
        self,
        memory_bytes: int = 1 << 30,
        compute_capability: tuple[int, int] = (8, 6),
        name: str = "NVIDIA GeForce RTX 3090",
        fails: dict[tuple[str, int], str] | None = None,
    ) -> None:
        self.arena = Arena(memory_bytes)
        self.calls: list[str] = []
        self.name = name
        self._compute_capability = compute_capability
        self._fails = fails or {}
        self._sticky: str | None = None
        self._last = "cudaSuccess"
        self._handles = itertools.count(1000)
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, Event] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._execs: dict[int, list[Work]] = {}

    # Calls for the double of TensorRT.

    @property
    def lost(self) -> str | None:
        """The status that every call returns since the device failed; None while it works."""
        return self._sticky

    def break_device(self, status: str) -> None:
        """Fail the device in a kernel that TensorRT launched by its own CUDA runtime."""
        self._sticky = status
        for stream in self._streams.values():
            stream.queue.clear()

    @property
    def has_context(self) -> bool:
        """True once a call has created the CUDA context."""
        return bool(self._streams)

    def stream_of(self, handle: int) -> Stream:
        """Return a living stream by its handle."""
        if int(handle) not in self._streams:
            raise Misuse(f"{int(handle)} is no living stream" if handle else "the default stream is used")
        return self._streams[int(handle)]

    def submit(self, stream: Stream, work: Work) -> None:
        """Put work into the stream's queue, or into the graph that is being captured on it."""
        if stream.captured is None:
            stream.queue.append(work)
        elif stream.thread != threading.get_ident():
            raise Misuse("a stream is used by another thread while it is captured")
        else:
            stream.captured.append(work)

    @property
    def capturing(self) -> bool:
        """True while a capture is in progress on any stream."""
        return any(stream.captured is not None for stream in self._streams.values())

    def finish(self) -> None:
        """Execute all pending work."""
        for stream in self._streams.values():
            self._drain(stream)

    def leaks(self) -> dict[str, int]:
        """Return what has not been released."""
        held = {
            "bytes": self.arena.used_bytes,
            "streams": len(self._streams),
            "events": len(self._events),
            "graphs": len(self._graphs),
            "graph executables": len(self._execs),
        }
        return {name: count for name, count in held.items() if count}

    # The functions, by CUDA's names.

    def cudaGetDeviceCount(self) -> Status:
        return self._done("cudaGetDeviceCount", lambda: 1)

    def cudaGetDevice(self) -> Status:
        return self._done("cudaGetDevice", lambda: 0)

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> Status:
        index = [
            self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
        ].index(attr)
        return self._done("cudaDeviceGetAttribute", lambda: self._compute_capability[index])

    def cudaGetDeviceProperties(self, device: int) -> Status:
        return self._done("cudaGetDeviceProperties", lambda: Properties(self.name.encode()))

    def cudaGetLastError(self) -> Status:
        status, self._last = self._last, "cudaSuccess"
        return (self.cudaError_t[status],)

    def cudaMemGetInfo(self) -> Status:
        free = self.arena.size_bytes - self.arena.used_bytes
        status, _ = self._done("cudaMemGetInfo", lambda: free)
        return status, free, self.arena.size_bytes

    def cudaMalloc(self, size: int) -> Status:
        if self._spoil_capture():
            return self._failed("cudaErrorStreamCaptureUnsupported", True)
        status, address = self._done("cudaMalloc", lambda: self.arena.allocate(size))
        if status.name == "cudaSuccess" and address is None:
            return self._failed("cudaErrorMemoryAllocation", True)
        return status, address

    def cudaFree(self, devPtr: int) -> Status:
        if self._spoil_capture():
            return self._failed("cudaErrorStreamCaptureUnsupported")
        return self._done("cudaFree", lambda: self._free(devPtr), value=False)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> Status:
        kinds, arena = self.cudaMemcpyKind, self.arena
        if kind is kinds.cudaMemcpyDeviceToDevice:
            if abs(dst - src) < count:
                raise Misuse("a copy overlaps itself")
            arena.view(dst, count), arena.view(src, count)

            def work() -> None:
                arena.view(dst, count)[:] = arena.view(src, count)

        elif kind is kinds.cudaMemcpyHostToDevice:
            arena.view(dst, count)

            def work() -> None:
                ctypes.memmove(arena.view(dst, count).ctypes.data, src, count)

        else:
            arena.view(src, count)

            def work() -> None:
                ctypes.memmove(dst, arena.view(src, count).ctypes.data, count)

        if kind is not kinds.cudaMemcpyDeviceToDevice and self.stream_of(stream).captured is not None:
            raise Misuse("host memory is copied in a capture: the graph would read it whenever it is launched")
        return self._done("cudaMemcpyAsync", lambda: self.submit(self.stream_of(stream), work), value=False)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> Status:
        self.arena.view(devPtr, count)

        def work() -> None:
            self.arena.view(devPtr, count)[:] = value

        return self._done("cudaMemsetAsync", lambda: self.submit(self.stream_of(stream), work), value=False)

    def cudaStreamCreateWithFlags(self, flags: int) -> Status:
        handle = cudaStream_t(next(self._handles))
        return self._done(
            "cudaStreamCreateWithFlags", lambda: (self._streams.update({int(handle): Stream()}), handle)[1]
        )

    def cudaStreamDestroy(self, stream: Any) -> Status:
        self._drain(self.stream_of(stream))
        return self._done("cudaStreamDestroy", lambda: self._streams.pop(int(stream)), value=False)

    def cudaStreamSynchronize(self, stream: Any) -> Status:
        if self._spoil_capture():
            return self._failed("cudaErrorStreamCaptureUnsupported")
        return self._done("cudaStreamSynchronize", lambda: self._drain(self.stream_of(stream)), value=False)

    def cudaStreamQuery(self, stream: Any) -> Status:
        if self._spoil_capture():
            self.calls.append("cudaStreamQuery")
            return self._failed("cudaErrorStreamCaptureUnsupported")
        on = self.stream_of(stream)
        if self._sticky is None and on.queue:
            self.calls.append("cudaStreamQuery")
            return self._failed("cudaErrorNotReady")
        return self._done("cudaStreamQuery", lambda: None, value=False)

    def cudaEventCreateWithFlags(self, flags: int) -> Status:
        handle = next(self._handles)
        return self._done("cudaEventCreateWithFlags", lambda: (self._events.update({handle: Event()}), handle)[1])

    def cudaEventDestroy(self, event: int) -> Status:
        return self._done("cudaEventDestroy", lambda: self._events.pop(event), value=False)

    def cudaEventRecord(self, event: int, stream: Any) -> Status:
        target, on = self._events[event], self.stream_of(stream)

        def work() -> None:
            target.time_s, target.pending = time.perf_counter(), None

        target.time_s, target.pending = None, on
        return self._done("cudaEventRecord", lambda: self.submit(on, work), value=False)

    def cudaEventSynchronize(self, event: int) -> Status:
        if self._spoil_capture():
            return self._failed("cudaErrorStreamCaptureUnsupported")
        pending = self._events[event].pending

        def wait() -> None:
            while self._events[event].time_s is None and pending and pending.queue:
                pending.queue.pop(0)()

        return self._done("cudaEventSynchronize", wait, value=False)

    def cudaEventElapsedTime(self, start: int, end: int) -> Status:
        first, last = self._events[start].time_s, self._events[end].time_s
        if first is None or last is None:
            return self._failed("cudaErrorNotReady", True)
        return self._done("cudaEventElapsedTime", lambda: (last - first) * 1000)

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Status:
        on = self.stream_of(stream)
        if on.captured is not None:
            return self._failed("cudaErrorIllegalState")

        def begin() -> None:
            on.captured, on.spoilt, on.thread = [], False, threading.get_ident()

        return self._done("cudaStreamBeginCapture", begin, value=False)

    def cudaStreamEndCapture(self, stream: Any) -> Status:
        on = self.stream_of(stream)
        work, on.captured = on.captured, None
        if work is None:
            return self._failed("cudaErrorIllegalState", True)
        if on.spoilt:
            return self._failed("cudaErrorStreamCaptureInvalidated", True)
        handle = next(self._handles)
        return self._done("cudaStreamEndCapture", lambda: (self._graphs.update({handle: work}), handle)[1])

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Status:
        handle = next(self._handles)
        return self._done(
            "cudaGraphInstantiate", lambda: (self._execs.update({handle: [*self._graphs[graph]]}), handle)[1]
        )

    def cudaGraphDestroy(self, graph: int) -> Status:
        return self._done("cudaGraphDestroy", lambda: self._graphs.pop(graph), value=False)

    def cudaGraphExecDestroy(self, graphExec: int) -> Status:
        self.finish()
        return self._done("cudaGraphExecDestroy", lambda: self._execs.pop(graphExec), value=False)

    def cudaGraphLaunch(self, graphExec: int, stream: Any) -> Status:
        if graphExec not in self._execs:
            raise Misuse("a graph is launched that was destroyed")
        on = self.stream_of(stream)
        return self._done("cudaGraphLaunch", lambda: on.queue.extend(self._execs[graphExec]), value=False)

    # Return values.

    def _done(self, name: str, action: Callable[[], Any], *, value: bool = True) -> Status:
        """Record the call and execute it, unless it is set to fail or the device is lost."""
        self.calls.append(name)
        status = self._sticky or self._fails.get((name, self.calls.count(name)))
        if status is not None:
            if status not in ("cudaErrorMemoryAllocation", "cudaErrorStreamCaptureUnsupported"):
                self._sticky = status
                for stream in self._streams.values():
                    stream.queue.clear()
            return self._failed(status, value)
        result = action()
        success = self.cudaError_t["cudaSuccess"]
        return (success, result) if value else (success,)

    def _failed(self, status: str, value: bool = False) -> Status:
        self._last = status
        return (self.cudaError_t[status], None) if value else (self.cudaError_t[status],)

    def _free(self, address: int) -> None:
        # cudaFree waits for the whole device.
        self.finish()
        self.arena.free(address)

    def _spoil_capture(self) -> bool:
        """Return whether this thread captures; if so, the call invalidates its capture."""
        spoilt = [s for s in self._streams.values() if s.captured is not None and s.thread == threading.get_ident()]
        for stream in spoilt:
            stream.spoilt = True
        return bool(spoilt)

    def _drain(self, stream: Stream) -> None:
        while stream.queue:
            stream.queue.pop(0)()
