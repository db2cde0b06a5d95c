"""The denoising loop on the device, on the doubles: equal to the CPU's, one launch a step, and sound when it fails."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.errors import BackendUnavailableError, EngineError, NumericError, ResourceError, SdrtError
from sdrt.pipeline import Pipeline
from sdrt.runtime.backends.tensorrt_engine import STEP_INPUTS, TensorRtEngine
from sdrt.runtime.backends.tensorrt_loop import LEAST_ROWS, TensorRtLoop, schedule_table
from sdrt.runtime.denoise import Latents, denoise, denoise_fused
from tests.doubles.cuda_double.memory import Misuse
from tests.doubles.cuda_double.rig import Rig, cpu_session, forget
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.helpers.latents import conditioning, noise, sd_v1_schedule

MakePlans = Callable[..., EngineSet]
#: The three ways to run a step: a graph captured by sdrt, one captured by TensorRT-RTX, and no graph.
WAYS = [
    pytest.param(False, True, id="graph"),
    pytest.param(True, True, id="rtx-graph"),
    pytest.param(False, False, id="no-graph"),
    pytest.param(True, False, id="rtx-no-graph"),
]
#: Relative to the largest latent. The plain loop adds in another order; float32 keeps 24 bits, 25 steps add 100 terms.
PLAIN_TOLERANCE = 1e-5


def run(rig: Rig, batch: int = 2, steps: int = 7, on_step: Any = None, seed: int = 0) -> Latents:
    schedule = sd_v1_schedule(steps)
    return rig.loop().denoise(schedule, noise(schedule, batch, seed), conditioning(batch), on_step, forget)


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_loop_is_the_cpu_loop(
    plans: EngineSet, hand_bundle: Bundle, rtx: bool, cuda_graphs: bool, batch: int
) -> None:
    schedule, latents = sd_v1_schedule(25), noise(sd_v1_schedule(25), batch)
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig, cpu_session(plans, hand_bundle) as cpu:
        device = rig.loop().denoise(schedule, latents, conditioning(batch), None, forget)
        fused = denoise_fused(cpu.engine("denoise_step"), schedule, latents, conditioning(batch))
        plain = denoise(cpu.engine("unet"), schedule, latents, conditioning(batch))
    # The same graph by the same library, fed the same rows: every bit is the same.
    assert np.array_equal(device, fused)
    assert np.abs(device - plain).max() <= PLAIN_TOLERANCE * np.abs(plain).max()
    other = denoise(cpu.engine("unet"), schedule, latents, dataclasses.replace(conditioning(batch), guidance_scale=7.4))
    assert np.abs(device - other).max() > 10 * PLAIN_TOLERANCE * np.abs(plain).max()


def test_the_prediction_type_is_the_graphs(make_plans: MakePlans, hand_bundle: Bundle) -> None:
    engines = make_plans(prediction_type="v_prediction")
    schedule = sd_v1_schedule(7, "v_prediction")
    with Rig(engines) as rig, cpu_session(engines, hand_bundle) as cpu:
        device = rig.loop().denoise(schedule, noise(schedule, 2), conditioning(2), None, forget)
        plain = denoise(cpu.engine("unet"), schedule, noise(schedule, 2), conditioning(2))
        epsilon = denoise(cpu.engine("unet"), sd_v1_schedule(7), noise(schedule, 2), conditioning(2))
    assert np.abs(device - plain).max() <= PLAIN_TOLERANCE * np.abs(plain).max()
    assert np.abs(device - epsilon).max() > 100 * PLAIN_TOLERANCE * np.abs(plain).max()


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
def test_one_loop_runs_any_batch_and_any_number_of_steps(plans: EngineSet, rtx: bool, cuda_graphs: bool) -> None:
    shapes = [(1, 3), (4, 3), (1, LEAST_ROWS + 1), (2, 1)]
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig:
        results = [run(rig, batch, steps) for batch, steps in shapes]
    for (batch, steps), result in zip(shapes, results, strict=True):
        with Rig(plans) as fresh:
            assert np.array_equal(run(fresh, batch, steps), result)


def test_between_steps_there_is_one_launch_and_nothing_else(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        run(rig, steps=50)
        calls = rig.cuda.calls
        first = calls.index("cudaGraphLaunch")
        last = len(calls) - 1 - calls[::-1].index("cudaGraphLaunch")
        between = Counter(calls[first : last + 1])
    assert between == {"cudaGraphLaunch": 50, "cudaEventRecord": 49}


def test_a_second_run_captures_and_allocates_nothing(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        run(rig)
        first = Counter(rig.cuda.calls)
        run(rig, seed=1)
        again = Counter(rig.cuda.calls) - first
        assert again["cudaMalloc"] == again["cudaStreamBeginCapture"] == again["cudaEventCreateWithFlags"] == 0
        assert again["cudaGraphLaunch"] == 7
        run(rig, batch=1)
        assert Counter(rig.cuda.calls)["cudaStreamBeginCapture"] == 2


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
def test_who_is_said_to_be_replayed(plans: EngineSet, rtx: bool, cuda_graphs: bool) -> None:
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig:
        said = {name: rig.session.replays(name) for name in plans.manifest.components}
        expected = {name for name in said if cuda_graphs and (name == "denoise_step" or (rtx and name == "unet"))}
        assert {name for name, replays in said.items() if replays} == expected


def test_who_tensorrt_rtx_cannot_capture_is_not_said_to_be_replayed(make_plans: MakePlans) -> None:
    """Check the record, since TensorRT-RTX then runs without a graph and does not report it."""
    with Rig(make_plans(capturable=False), rtx=True) as rig:
        assert {rig.session.replays(name) for name in rig.engines.manifest.components} == {False}
        run(rig)
        run(rig)
        assert rig.session.replays("denoise_step") is False
        assert rig.notes == ["denoise_step is run without a CUDA graph: TensorRT-RTX cannot capture it"]


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
def test_who_captures(plans: EngineSet, rtx: bool, cuda_graphs: bool) -> None:
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig:
        run(rig)
        assert ("cudaStreamBeginCapture" in rig.cuda.calls) == (cuda_graphs and not rtx)
        replays = {name: rig.session.engine(name)._context._replays_itself for name in ("denoise_step", "vae_decoder")}  # type: ignore[attr-defined]
        assert replays == {"denoise_step": rtx and cuda_graphs, "vae_decoder": False}


def test_progress_and_seconds_count_steps(plans: EngineSet) -> None:
    done: list[int] = []
    schedule = sd_v1_schedule(7)
    with Rig(plans) as rig:
        rig.loop().denoise(schedule, noise(schedule, 1), conditioning(1), None, done.append)
        assert done == [1] * 7
        assert len(rig.loop().seconds) == 7
        assert all(second > 0 for second in rig.loop().seconds)


def test_only_denoise_step_holds_weights_until_guidance_is_off(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        run(rig)
        bytes_held = rig.session.device_bytes
        assert bytes_held["weights"] == 1234
        assert bytes_held["total"] == sum(value for name, value in bytes_held.items() if name != "total")
        assert bytes_held["total"] - bytes_held["weights"] == rig.cuda.arena.used_bytes
        # Two pictures, before and after a step: 4 x 8 x 8 latents, and four derivatives of each, in float32.
        assert bytes_held["latents"] == 2 * 2 * 4 * 64 * 4
        assert bytes_held["history"] == 4 * bytes_held["latents"]
        assert bytes_held["schedule"] == 2 * LEAST_ROWS * 4 * 256


# Callbacks.


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
def test_a_callback_sees_and_changes_what_the_cpu_loop_shows(
    plans: EngineSet, hand_bundle: Bundle, rtx: bool, cuda_graphs: bool
) -> None:
    seen: dict[str, list[Latents]] = {"device": [], "cpu": []}

    def watch(where: str) -> Callable[[int, float, Latents], Latents | None]:
        def on_step(step: int, timestep: float, latents: Latents) -> Latents | None:
            seen[where].append(latents.copy())
            if step == 4:
                return None
            return latents * np.float32(0.5) if step == 2 else latents

        return on_step

    schedule, latents = sd_v1_schedule(7), noise(sd_v1_schedule(7), 2)
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig, cpu_session(plans, hand_bundle) as cpu:
        device = rig.loop().denoise(schedule, latents, conditioning(2), watch("device"), forget)
        fused = denoise_fused(cpu.engine("denoise_step"), schedule, latents, conditioning(2), watch("cpu"))
    assert len(seen["device"]) == 5
    assert all(np.array_equal(a, b) for a, b in zip(seen["device"], seen["cpu"], strict=True))
    assert np.array_equal(device, fused)


def test_latents_changed_in_place_count(plans: EngineSet) -> None:
    def halve(step: int, timestep: float, latents: Latents) -> Latents:
        latents *= np.float32(0.5)
        return latents

    with Rig(plans) as rig:
        assert not np.array_equal(run(rig, on_step=halve), run(rig))


# NaN and Inf.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
def test_row_56_the_first_bad_step_is_named(
    plans: EngineSet, bad: float, watched: bool, rtx: bool, cuda_graphs: bool
) -> None:
    schedule = sd_v1_schedule(7)
    coefficients = schedule.coefficients.copy()
    coefficients[3, 1] = bad
    broken = dataclasses.replace(schedule, coefficients=coefficients)
    hook = (lambda step, timestep, latents: latents) if watched else None
    with Rig(plans, rtx=rtx, cuda_graphs=cuda_graphs) as rig:
        sigma = f"{schedule.sigmas[3]:.4g}"
        with pytest.raises(NumericError, match=rf"denoise_step gave .* at step 4 \(sigma {sigma}\)"):
            rig.loop().denoise(broken, noise(schedule, 2), conditioning(2), hook, forget)
        assert np.isfinite(run(rig)).all()


def test_numbers_that_were_bad_once_only_are_an_error_too(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    start, starts = TensorRtLoop._start, []

    def poisoned(self: TensorRtLoop, rows: Any, latents: Latents, given: Any) -> None:
        starts.append(1)
        start(self, rows, latents * np.float32(math.nan) if len(starts) == 1 else latents, given)

    monkeypatch.setattr(TensorRtLoop, "_start", poisoned)
    with Rig(plans) as rig, pytest.raises(NumericError, match="NaN or Inf once, and none when run again"):
        run(rig)


# Failures.


def test_a_capture_without_a_warm_up_is_a_named_error(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue = TensorRtLoop._enqueue
    monkeypatch.setattr(
        TensorRtLoop, "_enqueue", lambda self: enqueue(self) if self._device.cuda.api.capturing else None
    )
    with (
        Rig(plans) as rig,
        pytest.raises(EngineError, match=r"captured as a CUDA graph: .*without a run") as e,
    ):
        run(rig)
    assert "--no-cuda-graphs" in e.value.hint


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_is_a_named_error_and_can_be_tried_again(plans: EngineSet, call: str) -> None:
    with Rig(plans, CudaDouble(fails={(call, 1): "cudaErrorStreamCaptureUnsupported"})) as rig:
        with pytest.raises(EngineError, match="cannot be captured as a CUDA graph"):
            run(rig)
        if call == "cudaGraphInstantiate":
            assert np.isfinite(run(rig)).all()


def test_a_graph_of_another_batch_is_not_launched(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the double detects what the loop's generations are there to prevent."""
    rig = Rig(plans)
    run(rig, 2)
    monkeypatch.setattr(TensorRtLoop, "_make_graph", lambda self, row_bytes: None)
    with pytest.raises(Misuse):
        run(rig, 1)


@pytest.mark.parametrize(
    ("call", "number"), [("cudaGraphLaunch", 3), ("cudaEventSynchronize", 2), ("cudaMemcpyAsync", 5)]
)
def test_a_lost_device_is_a_named_error_and_closing_does_not_fail(plans: EngineSet, call: str, number: int) -> None:
    rig = Rig(plans, CudaDouble(fails={(call, number): "cudaErrorLaunchFailure"}))
    with pytest.raises(BackendUnavailableError, match=f"the GPU failed: {call} gave cudaErrorLaunchFailure") as caught:
        run(rig)
    assert "Xid" in caught.value.hint
    rig.session.close()
    with pytest.raises(SdrtError):
        run(rig)


def test_any_memory_too_small_is_an_error_and_everything_is_given_back(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        run(rig, steps=3)
        needed = rig.cuda.arena.used_bytes
    outcomes = []
    for memory_bytes in (*range(0, needed, needed // 12), needed):
        with Rig(plans, CudaDouble(memory_bytes=memory_bytes)) as small:
            try:
                run(small, steps=3)
                outcomes.append("runs")
            except ResourceError:
                outcomes.append("out of memory")
    assert outcomes[0] == "out of memory"
    assert outcomes[-1] == "runs"
    assert outcomes == sorted(outcomes), "more memory never makes it fail"


def test_any_call_that_fails_is_an_error_of_ours_and_leaks_nothing(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        run(rig, steps=2)
        counted = Counter(rig.cuda.calls)
    # A graph that cannot be destroyed stays.
    del counted["cudaGraphDestroy"]
    for call, count in counted.items():
        for number in {1, 2, count} & set(range(1, count + 1)):
            fails = {(call, number): "cudaErrorMemoryAllocation"}
            try:
                rig = Rig(plans, CudaDouble(fails=fails))
            except SdrtError:
                continue
            with rig, pytest.raises(SdrtError):
                run(rig, steps=2)


def test_an_interrupted_run_leaves_a_loop_that_runs(plans: EngineSet) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    schedule = sd_v1_schedule(5)
    with Rig(plans) as rig:
        expected = run(rig, steps=5)
        with pytest.raises(KeyboardInterrupt):
            rig.loop().denoise(schedule, noise(schedule, 2), conditioning(2), None, interrupt)
        assert np.array_equal(run(rig, steps=5), expected)


# The table.


def test_the_table_is_laid_out_as_the_engine_is(plans: EngineSet) -> None:
    schedule = sd_v1_schedule(5)
    with Rig(plans) as rig:
        engine = rig.session.engine("denoise_step")
        assert isinstance(engine, TensorRtEngine)
        engine.bind(3)
        rows = schedule_table(schedule, 3, 7.5, 8)
        assert rows.shape == (8, engine.span(*STEP_INPUTS))
        first = engine.address(STEP_INPUTS[0])
        offsets = {name: engine.address(name) - first for name in STEP_INPUTS}
    values = {name: rows[2, offset:].view(np.float32) for name, offset in offsets.items()}
    assert values["timestep"][:3].tolist() == [schedule.timesteps[2]] * 3
    assert values["sigma"][:3].tolist() == [schedule.sigmas[2]] * 3
    assert values["guidance_scale"][:3].tolist() == [7.5] * 3
    assert np.array_equal(values["lms_coefficients"][:12].reshape(3, 4), [schedule.coefficients[2].astype("f4")] * 3)
    assert not rows[5:].any()


# The whole pipeline.


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch, hand_bundle: Bundle) -> Callable[..., tuple[Pipeline, Pipeline]]:
    """Return a function that opens pipelines over the doubles and over the CPU, of the same set."""

    def make(engines: EngineSet, **options: Any) -> tuple[Pipeline, Pipeline]:
        rig = Rig(engines, **options)
        monkeypatch.setattr("sdrt.pipeline.open_session", lambda *_, **__: rig.session)
        device = Pipeline(engines)
        monkeypatch.setattr("sdrt.pipeline.open_session", lambda *_, **__: cpu_session(engines, hand_bundle))
        return device, Pipeline(engines)

    return make


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
@pytest.mark.parametrize("profiles", [((1, 1, 4),), ((1, 1, 1),), ((1, 1, 1), (2, 2, 2))])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_the_whole_denoise_on_the_doubles_is_the_cpus(
    make_plans: MakePlans,
    pipelines: Callable[..., tuple[Pipeline, Pipeline]],
    rtx: bool,
    cuda_graphs: bool,
    profiles: Any,
    guidance_scale: float,
) -> None:
    device, cpu = pipelines(make_plans(profiles=profiles), rtx=rtx, cuda_graphs=cuda_graphs)
    with device, cpu:
        for count in (1, 2, 3, 5):
            settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "seed": 3}
            one = device(["a red circle"] * count, **settings)
            two = cpu(["a red circle"] * count, **settings)
            # The same graphs by the same library in the same groups: every bit is the same.
            assert np.array_equal(one.latents, two.latents)
            assert [a.tobytes() for a in one.images] == [b.tobytes() for b in two.images]
            assert len(one.timings.steps) == len(two.timings.steps)
        other = device(["a blue star"], num_inference_steps=4, guidance_scale=guidance_scale, seed=3)
        assert not np.array_equal(other.latents, one.latents[:1])
        assert json.dumps(device.device_bytes)
        assert device.device_bytes["total"] > 0
        assert cpu.device_bytes == {}


ALL: tuple[ComponentName, ...] = ("text_encoder", "denoise_step", "unet", "vae_encoder", "vae_decoder")


@pytest.mark.parametrize(("rtx", "cuda_graphs"), WAYS)
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_picture_started_from_and_a_run_that_is_stopped_are_the_cpus(
    make_plans: MakePlans,
    pipelines: Callable[..., tuple[Pipeline, Pipeline]],
    rtx: bool,
    cuda_graphs: bool,
    guidance_scale: float,
) -> None:
    def stop(pipe: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> dict[str, Any] | None:
        if step < 2:
            return None
        pipe.stop()
        return {"latents": values["latents"] * np.float32(0.5)}

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    settings: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": guidance_scale, "seed": 3, "image": picture}
    device, cpu = pipelines(make_plans(components=ALL), rtx=rtx, cuda_graphs=cuda_graphs)
    with device, cpu:
        for more in ({}, {"start_step": 5}, {"callback_on_step_end": stop}):
            one, two = (pipe(["a red circle"] * 2, **settings, **more) for pipe in (device, cpu))
            assert np.array_equal(one.latents, two.latents)
            assert (one.stopped_after, len(one.timings.steps)) == (two.stopped_after, len(two.timings.steps))
        assert one.stopped_after == 3


def test_engines_on_a_device_stay(make_plans: MakePlans, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = make_plans()
    rig = Rig(engines)
    monkeypatch.setattr("sdrt.pipeline.open_session", lambda *_, **__: rig.session)
    with Pipeline(engines, keep_loaded=False) as pipe:
        first = pipe("a red circle", num_inference_steps=3, seed=3)
        assert set(rig.session._opened) == {"text_encoder", "denoise_step", "vae_decoder"}
        again = pipe("a red circle", num_inference_steps=3, seed=3)
    assert np.array_equal(first.latents, again.latents)
