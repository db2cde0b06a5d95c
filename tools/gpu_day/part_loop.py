"""sdrt's session and loop on the real CUDA runtime, with torch's kernels in place of TensorRT."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.runtime.backends.session import DeviceLoop
from sdrt.runtime.backends.tensorrt import TensorRtSession
from sdrt.runtime.denoise import Conditioning, Latents, denoise
from sdrt.sampling.lms import Schedule
from tests.doubles.cuda_double.plans import double_set
from tests.helpers.latents import sd_v1_schedule
from tools.gpu_day.findings import Findings
from tools.gpu_day.half_double import HalfDouble
from tools.gpu_day.workbench import Workbench

COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "unet", "denoise_step")
#: Tolerance relative to the largest latent: the fused step and the plain one sum in another order, and guided steps
#: amplify the difference in fp16.
FUSED_TOLERANCE = 5e-2

Run = Callable[[DeviceLoop], Latents]


def loop(found: Findings, bench: Workbench) -> None:
    """Denoise with graphs, without, repeated, with a callback, and by the plain loop, at several batches."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        engines = double_set(bench.bundle(), Path(folder), profiles=((1, 1, 4),), components=COMPONENTS)
        cuda = bench.cuda()
        sessions = [
            stack.enter_context(
                TensorRtSession(engines, HalfDouble(bench.device(cuda), bench.kernels_on), cuda, cuda_graphs=graphs)
            )
            for graphs in (True, False)
        ]
        for count in bench.pictures:
            _compare(found, sessions, engines, count, bench.steps)
        found.fact("device bytes", sessions[0].device_bytes)


def _compare(found: Findings, sessions: list[TensorRtSession], engines: EngineSet, count: int, steps: int) -> None:
    schedule = sd_v1_schedule(steps)
    latents, conditioning = _request(engines, schedule, count)
    seen: list[int] = []

    def run(session: TensorRtSession, *, watched: bool = False) -> Latents:
        on_device = session.device_loop()
        if on_device is None:
            raise TypeError("the session has no loop on the device")

        def watch(step: int, _: float, values: Latents) -> Latents:
            seen.append(step)
            return values

        return on_device.denoise(schedule, latents, conditioning, watch if watched else None, lambda _: None)

    with_graphs, without = sessions
    first = run(with_graphs)
    start = time.perf_counter()
    again = run(with_graphs)
    wall = time.perf_counter() - start
    other = run(without)
    name = f"{count} pictures"
    found.check(f"{name}: finite", bool(np.isfinite(first).all()))
    found.check(f"{name}: graphs change nothing", np.array_equal(first, other), _distance(first, other))
    found.check(f"{name}: the same again", np.array_equal(first, again), _distance(first, again))
    on_device = with_graphs.device_loop()
    times = np.array(getattr(on_device, "seconds", [])) * 1e3
    found.fact(f"{name}: wall ms", round(wall * 1e3, 2))
    if times.size:
        found.fact(
            f"{name}: device ms, all and median", (round(float(times.sum()), 2), round(float(np.median(times)), 3))
        )
    watched = run(with_graphs, watched=True)
    found.check(f"{name}: a callback changes nothing", np.array_equal(first, watched) and seen == [*range(steps)])
    plain = denoise(without.engine("unet"), schedule, latents, conditioning)
    distance = _distance(first, plain)
    found.check(f"{name}: the plain loop gives the same", distance <= FUSED_TOLERANCE, distance)


def _request(engines: EngineSet, schedule: Schedule, count: int) -> tuple[Latents, Conditioning]:
    rng = np.random.default_rng(0)
    shapes = {spec.name: [int(n) for n in spec.shape[1:]] for spec in engines.component("denoise_step").inputs}
    states = 0.5 * rng.standard_normal((2, count, *shapes["cond_states"])).astype(np.float32)
    unit = rng.standard_normal((count, *shapes["latents"])).astype(np.float32)
    return unit * np.float32(schedule.init_noise_sigma), Conditioning(states[0], states[1], 7.5)


def _distance(one: Latents, other: Latents) -> float:
    """Return the largest difference relative to the largest latent."""
    return float(np.abs(one - other).max() / np.abs(other).max())
