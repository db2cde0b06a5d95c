"""The guided denoising loop on the GPU: a step is one launch, and nothing is copied to the host between steps.

The schedule is a table of rows in device memory. A step copies the table's first row to the engine's inputs, runs the
engine, copies its outputs to its inputs, and moves the table up by one row: so every step enqueues the same work, and
one CUDA graph serves all of them (docs/decisions/0030).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.arrays import Array, check_finite
from sdrt.errors import EngineError, NumericError
from sdrt.libraries.cuda import Buffer
from sdrt.machine.gc_pause import gc_paused
from sdrt.runtime.backends.tensorrt_device import Device
from sdrt.runtime.backends.tensorrt_engine import STEP_INPUTS, TensorRtEngine, aligned
from sdrt.runtime.denoise import step_rows

if TYPE_CHECKING:
    from sdrt.runtime.denoise import Conditioning, Latents, OnStep
    from sdrt.sampling.lms import Schedule

# Rows of the smallest table; the number doubles until the schedule fits.
LEAST_ROWS = 64
_FED_BACK = (("next_latents", "latents"), ("next_history", "history"))


class TensorRtLoop:
    """Runs denoise_step for whole schedules.

    Args:
        engine: The opened denoise_step.
        device: The GPU that the engine runs on.
        capture: Whether to capture the step as a CUDA graph; TensorRT-RTX does so by itself.
    """

    def __init__(self, engine: TensorRtEngine, device: Device, *, capture: bool) -> None:
        self.seconds: list[float] = []
        self._engine = engine
        self._device = device
        self._capture = capture
        self._tables: Buffer | None = None
        self._graph: Any = None
        self._captured: tuple[int, int] | None = None
        self._events: list[Any] = []

    @property
    def buffer_bytes(self) -> int:
        """Device memory of the schedule's table and its spare copy, in bytes."""
        return self._tables.size_bytes if self._tables else 0

    def denoise(
        self,
        schedule: Schedule,
        latents: Latents,
        conditioning: Conditioning,
        on_step: OnStep | None,
        advance: Callable[[int], None],
    ) -> Latents:
        """Run every step of the schedule; see `DeviceLoop`."""
        rows = self._prepare(schedule, len(latents), conditioning)
        self._start(rows, latents, conditioning)
        if on_step is not None:
            return self._run_watched(schedule, latents, on_step, advance)
        self._run(schedule.num_inference_steps, advance)
        final = self._download()
        if not np.isfinite(final).all():
            self._find_bad_step(schedule, rows, latents, conditioning)
        return final

    def close(self) -> None:
        """Free graph, events and tables; the device must be done with them."""
        cuda = self._device.cuda
        self._drop_graph()
        while self._events:
            cuda.release("cudaEventDestroy", self._events.pop())
        self._drop_tables()

    def _prepare(self, schedule: Schedule, batch: int, conditioning: Conditioning) -> Array:
        """Prepare buffers, events and graph, and return the table's rows as bytes."""
        self._engine.bind(batch)
        row_bytes = self._engine.span(*STEP_INPUTS)
        capacity = LEAST_ROWS
        while capacity < schedule.num_inference_steps:
            capacity *= 2
        if self._table_bytes < capacity * row_bytes:
            self._drop_graph()
            self._drop_tables()
            self._tables = self._device.cuda.allocate(2 * capacity * row_bytes)
        while len(self._events) <= schedule.num_inference_steps:
            self._events.append(self._device.cuda.event())
        self._engine.share_activations()
        if self._capture and self._captured != (self._engine.generation, row_bytes):
            self._make_graph(row_bytes)
        return schedule_table(schedule, batch, conditioning.guidance_scale, self._table_bytes // row_bytes)

    def _make_graph(self, row_bytes: int) -> None:
        """Capture a step, after a run in which TensorRT does its first-run initialisation."""
        self._drop_graph()
        stream, cuda = self._device.stream, self._device.cuda
        cuda.zero(self._table, self._table_bytes, stream)
        self._enqueue()
        cuda.wait(stream)
        # Garbage collection may free device memory, which invalidates a capture.
        with gc_paused():
            self._graph = cuda.capture(stream, self._enqueue)
        self._captured = (self._engine.generation, row_bytes)

    def _start(self, rows: Array, latents: Latents, conditioning: Conditioning) -> None:
        """Copy schedule, noise, conditioning and an empty history to the device."""
        engine, stream, cuda = self._engine, self._device.stream, self._device.cuda
        dtypes = {spec.name: spec.dtype for spec in engine.spec.inputs}
        history = next(spec for spec in engine.spec.inputs if spec.name == "history")
        if conditioning.negative_prompt_embeds is None:
            raise EngineError("denoise_step runs with guidance only", hint="this is a fault in sdrt: report it")
        feeds = {
            "latents": latents,
            "uncond_states": conditioning.negative_prompt_embeds,
            "cond_states": conditioning.prompt_embeds,
            "history": np.zeros((len(latents), *(int(axis) for axis in history.shape[1:])), history.dtype),
        }
        arrays = {name: np.ascontiguousarray(array, dtypes[name]) for name, array in feeds.items()}
        with self._device.synchronised_on_error():
            cuda.upload(self._table, rows, stream)
            for name, array in arrays.items():
                cuda.upload(engine.address(name), array, stream)
            # The arrays may be freed only once the copies are done.
            cuda.wait(stream)

    def _step(self) -> None:
        if self._graph is not None:
            self._device.cuda.call("cudaGraphLaunch", self._graph, self._device.stream)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        """Enqueue one step; the work is the same for every step."""
        engine, stream, cuda = self._engine, self._device.stream, self._device.cuda
        row_bytes = engine.span(*STEP_INPUTS)
        cuda.copy(engine.address(STEP_INPUTS[0]), self._table, row_bytes, stream)
        engine.enqueue()
        for source, target in _FED_BACK:
            cuda.copy(engine.address(target), engine.address(source), engine.span(target), stream)
        # Through the spare table behind it: source and target of a copy must not overlap.
        spare, rest = self._table + self._table_bytes, self._table_bytes - row_bytes
        cuda.copy(spare, self._table + row_bytes, rest, stream)
        cuda.copy(self._table, spare, rest, stream)

    def _run(self, steps: int, advance: Callable[[int], None]) -> None:
        """Enqueue all steps at once, then report each as its event completes."""
        events, stream, cuda = self._events, self._device.stream, self._device.cuda
        cuda.call("cudaEventRecord", events[0], stream)
        for index in range(steps):
            self._step()
            cuda.call("cudaEventRecord", events[index + 1], stream)
        self.seconds = []
        for index in range(steps):
            cuda.call("cudaEventSynchronize", events[index + 1])
            self.seconds.append(cuda.seconds_between(events[index], events[index + 1]))
            advance(1)

    def _run_watched(
        self, schedule: Schedule, latents: Latents, on_step: OnStep, advance: Callable[[int], None]
    ) -> Latents:
        """Run step by step, with a copy of the latents on the host after each."""
        engine, stream, cuda = self._engine, self._device.stream, self._device.cuda
        self.seconds = []
        for index in range(schedule.num_inference_steps):
            start = time.perf_counter()
            self._step()
            latents = self._download()
            self.seconds.append(time.perf_counter() - start)
            check_finite(latents, "denoise_step", step=index + 1, sigma=float(schedule.sigmas[index]))
            advance(1)
            following = on_step(index, float(schedule.timesteps[index]), latents)
            if following is None:
                break
            latents = np.ascontiguousarray(following, np.float32)
            with self._device.synchronised_on_error():
                cuda.upload(engine.address("latents"), latents, stream)
                cuda.wait(stream)
        return latents

    def _find_bad_step(self, schedule: Schedule, rows: Array, latents: Latents, conditioning: Conditioning) -> None:
        """Run again, checking the latents after each step.

        The final latents show every fault: a step adds to the latents, and NaN or Inf plus anything is not finite.

        Raises:
            NumericError: Always; names the first step whose latents are not finite.
        """
        self._start(rows, latents, conditioning)
        for index in range(schedule.num_inference_steps):
            self._step()
            check_finite(self._download(), "denoise_step", step=index + 1, sigma=float(schedule.sigmas[index]))
        raise NumericError(
            "denoise_step gave NaN or Inf once, and none when run again from the same noise",
            hint="the GPU or its driver is at fault: look at its temperature and ECC errors (nvidia-smi -q)",
        )

    def _download(self) -> Latents:
        """Wait for the device, and return the latents."""
        spec = next(spec for spec in self._engine.spec.inputs if spec.name == "latents")
        latents = np.empty(self._engine.shape("latents"), spec.dtype)
        with self._device.synchronised_on_error():
            self._device.cuda.download(latents, self._engine.address("latents"), self._device.stream)
            self._device.cuda.wait(self._device.stream)
        return latents

    @property
    def _table(self) -> int:
        """Device address of the table."""
        if self._tables is None:
            raise EngineError("the denoising loop is closed", hint="open the pipeline again")
        return self._tables.address

    @property
    def _table_bytes(self) -> int:
        """Bytes of one of the two tables."""
        return self._tables.size_bytes // 2 if self._tables else 0

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph, self._captured = self._graph, None, None
            self._device.cuda.release("cudaGraphExecDestroy", graph)

    def _drop_tables(self) -> None:
        if self._tables is not None:
            tables, self._tables = self._tables, None
            self._device.cuda.free(tables)


def schedule_table(schedule: Schedule, batch: int, guidance_scale: float, capacity: int) -> Array:
    """Return the values of `STEP_INPUTS` at each step, in the layout of the engine's buffers.

    Returns:
        uint8 [capacity, bytes of a row]; rows after the last step are zero.
    """
    steps = range(schedule.num_inference_steps)
    columns = step_rows(schedule, steps, guidance_scale)
    parts = []
    for name in STEP_INPUTS:
        values = columns[name].reshape(len(steps), -1)
        raw = np.ascontiguousarray(np.tile(values, (1, batch))).view(np.uint8)
        parts.append(np.pad(raw, ((0, 0), (0, aligned(raw.shape[1]) - raw.shape[1]))))
    rows = np.concatenate(parts, axis=1)
    return np.pad(rows, ((0, capacity - len(rows)), (0, 0)))
