"""All calls of the CUDA runtime that sdrt makes: copies, capture, replay, errors, exhaustion of memory, times."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sdrt.errors import EngineError, ResourceError
from sdrt.libraries.cuda import Buffer, Cuda
from tools.gpu_day.findings import Findings
from tools.gpu_day.workbench import Workbench

SIZE_BYTES = 1 << 20
#: Bytes of the first block to fill memory with; the size is halved when a block does not fit.
LARGEST_BLOCK_BYTES = 8 << 30


def cuda_calls(found: Findings, bench: Workbench) -> None:
    """Make the calls in the order of a session."""
    cuda = bench.cuda()
    stream = cuda.stream()
    found.fact("device", f"{cuda.device_name()}, {cuda.compute_capability()}, {cuda.free_bytes()} bytes free")
    one, two = cuda.allocate(SIZE_BYTES), cuda.allocate(SIZE_BYTES)
    found.check("addresses are multiples of 256", one.address % 256 == 0 == two.address % 256)
    graph = _copies(found, cuda, stream, one, two)
    _times(found, cuda, stream, graph, one, two, bench.calls)
    _refusals(found, cuda, stream, one, two)
    _exhaustion(found, cuda)
    cuda.copy(two.address, one.address, SIZE_BYTES, stream)
    cuda.wait(stream)
    found.check("the device goes on after all that", not cuda.lost)


def _copies(found: Findings, cuda: Cuda, stream: object, one: Buffer, two: Buffer) -> object:
    """Copy to the device, on it and back; capture a copy in two halves and replay it."""
    sent = np.arange(SIZE_BYTES // 4, dtype=np.float32)
    got = np.empty_like(sent)

    def read() -> None:
        cuda.download(got, two.address, stream)
        cuda.wait(stream)

    def halves() -> None:
        for offset in (0, SIZE_BYTES // 2):
            cuda.copy(two.address + offset, one.address + offset, SIZE_BYTES // 2, stream)

    cuda.upload(one.address, sent, stream)
    cuda.copy(two.address, one.address, SIZE_BYTES, stream)
    read()
    found.check("what is copied there and back is the same", np.array_equal(sent, got))
    cuda.zero(two.address, SIZE_BYTES, stream)
    graph = cuda.capture(stream, halves)
    read()
    found.check("a capture runs nothing", not got.any())
    for _ in range(3):
        cuda.call("cudaGraphLaunch", graph, stream)
    read()
    found.check("a graph does what was captured", np.array_equal(sent, got))
    return graph


def _times(found: Findings, cuda: Cuda, stream: object, graph: object, one: Buffer, two: Buffer, count: int) -> None:
    """Measure the host's time of each call and the device's time of a copy, in microseconds."""
    start, end = cuda.event(), cuda.event()
    calls: dict[str, Callable[[], object]] = {
        "cudaGraphLaunch": lambda: cuda.call("cudaGraphLaunch", graph, stream),
        "cudaMemcpyAsync of 1 KiB": lambda: cuda.copy(two.address, one.address, 1024, stream),
        "cudaEventRecord": lambda: cuda.call("cudaEventRecord", start, stream),
    }
    for name, call in calls.items():
        cuda.wait(stream)
        began = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - began
        cuda.wait(stream)
        found.fact(f"host us a call: {name}", round(taken / count * 1e6, 2))
    cuda.call("cudaEventRecord", start, stream)
    cuda.copy(two.address, one.address, SIZE_BYTES, stream)
    cuda.call("cudaEventRecord", end, stream)
    cuda.call("cudaEventSynchronize", end)
    found.fact("1 MiB on the device, us", round(cuda.seconds_between(start, end) * 1e6, 1))


def _refusals(found: Findings, cuda: Cuda, stream: object, one: Buffer, two: Buffer) -> None:
    """Synchronise during a capture: it must raise an sdrt error, and the stream must work afterwards."""
    try:
        cuda.capture(stream, lambda: cuda.wait(stream))
    except EngineError as error:
        found.check("a wait in a capture is refused", True, error.message)
    else:
        found.check("a wait in a capture is refused", False, "it was captured")
    cuda.copy(two.address, one.address, 1024, stream)
    cuda.wait(stream)
    found.check("the stream works after a failed capture", True)


def _exhaustion(found: Findings, cuda: Cuda) -> None:
    """Allocate all memory and free it."""
    before, taken, said = cuda.free_bytes(), [], ""
    size_bytes = LARGEST_BLOCK_BYTES
    while size_bytes >= SIZE_BYTES:
        try:
            taken.append(cuda.allocate(size_bytes))
        except ResourceError as error:
            said, size_bytes = error.message, size_bytes // 2
    found.check("memory that runs out is a ResourceError", "out of GPU memory" in said, said)
    for block in taken:
        cuda.free(block)
    found.fact("bytes that filled it", sum(block.size_bytes for block in taken))
    found.check("what was freed is free again", cuda.free_bytes() >= before - SIZE_BYTES, cuda.free_bytes())
