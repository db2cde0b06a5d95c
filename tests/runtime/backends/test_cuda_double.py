"""The double enforces CUDA's and TensorRT's rules: each rule is broken here once, and detected."""

from __future__ import annotations

import enum
import inspect
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sdrt.artefacts.bundle import Bundle
from tests.doubles.cuda_double import trt as double
from tests.doubles.cuda_double.bench import SIZE, Bench, Log
from tests.doubles.cuda_double.memory import Misuse
from tests.doubles.cuda_double.plans import write_plan
from tests.doubles.cuda_double.runtime import API, CudaDouble
from tests.doubles.cuda_double.trt import ILogger, TensorRtDouble

RECORDED = Path(__file__).parents[2] / "engines" / "tensorrt_api"


@pytest.fixture
def bench(hand_bundle: Bundle, tmp_path: Path) -> Bench:
    return Bench(hand_bundle.graph("vae_decoder"), tmp_path)


def test_a_context_runs_what_onnxruntime_would(bench: Bench) -> None:
    context = bench.ready()
    bench.wait()
    assert context.execute_async_v3(int(bench.stream))
    assert (bench.bytes_at(bench.addresses["sample"], 16) == 0).all(), "nothing is done before it is waited for"
    bench.bytes_at(bench.addresses["latent_sample"], 1024).view(np.float32)[:] = 1
    bench.wait()
    assert (bench.bytes_at(bench.addresses["sample"], 16).view(np.float32) != 0).all()


# Memory.


def test_use_after_free(bench: Bench) -> None:
    source, target = bench.buffer(), bench.buffer()
    bench.value("cudaFree", source)
    with pytest.raises(Misuse, match="use after free"):
        bench.copy(target, source)


def test_freed_between_capture_and_replay(bench: Bench) -> None:
    source, target = bench.buffer(), bench.buffer()
    graph = bench.captured(lambda: bench.copy(target, source))
    bench.value("cudaFree", source)
    bench.value("cudaGraphLaunch", graph, bench.stream)
    with pytest.raises(Misuse, match="use after free"):
        bench.wait()


def test_freed_twice(bench: Bench) -> None:
    buffer = bench.buffer()
    bench.value("cudaFree", buffer)
    with pytest.raises(Misuse, match="not allocated: use after free"):
        bench.value("cudaFree", buffer)


def test_running_over_the_end(bench: Bench) -> None:
    with pytest.raises(Misuse, match="run over the end"):
        bench.copy(bench.buffer(), bench.buffer(), SIZE + 1)


def test_host_address_for_a_device_address(bench: Bench) -> None:
    array = np.zeros(SIZE, np.uint8)
    with pytest.raises(Misuse, match="is not device memory"):
        bench.copy(bench.buffer(), array.ctypes.data)


def test_copy_that_overlaps_itself(bench: Bench) -> None:
    buffer = bench.buffer(2 * SIZE)
    with pytest.raises(Misuse, match="overlaps"):
        bench.copy(buffer, buffer + 1)


def test_reading_before_waiting_gives_old_bytes(bench: Bench) -> None:
    buffer, array = bench.buffer(), np.full(SIZE, 7, np.uint8)
    bench.value("cudaMemsetAsync", buffer, 3, SIZE, bench.stream)
    bench.copy(array.ctypes.data, buffer, kind="cudaMemcpyDeviceToHost")
    assert (array == 7).all()
    bench.wait()
    assert (array == 3).all()


def test_out_of_memory_is_a_status(bench: Bench) -> None:
    assert bench.status("cudaMalloc", 1 << 40) == "cudaErrorMemoryAllocation"
    assert bench.status("cudaMalloc", SIZE) == "cudaSuccess"


# Streams, events and graphs.


def test_default_stream(bench: Bench) -> None:
    with pytest.raises(Misuse, match="default stream"):
        bench.ready().execute_async_v3(0)


def test_destroyed_stream(bench: Bench) -> None:
    bench.value("cudaStreamDestroy", bench.stream)
    with pytest.raises(Misuse, match="no living stream"):
        bench.wait()


def test_time_of_a_pending_event(bench: Bench) -> None:
    start, end = bench.value("cudaEventCreateWithFlags", 0), bench.value("cudaEventCreateWithFlags", 0)
    bench.value("cudaEventRecord", start, bench.stream)
    bench.value("cudaEventRecord", end, bench.stream)
    bench.value("cudaEventSynchronize", start)
    assert bench.status("cudaEventElapsedTime", start, end) == "cudaErrorNotReady"
    bench.value("cudaEventSynchronize", end)
    assert bench.value("cudaEventElapsedTime", start, end) >= 0


@pytest.mark.parametrize(
    "what", ["cudaStreamSynchronize", "cudaStreamQuery", "cudaEventSynchronize", "cudaMalloc", "cudaFree"]
)
def test_nothing_synchronous_in_a_capture(bench: Bench, what: str) -> None:
    event = bench.value("cudaEventCreateWithFlags", 0)
    argument = {
        "cudaStreamSynchronize": bench.stream,
        "cudaStreamQuery": bench.stream,
        "cudaEventSynchronize": event,
        "cudaMalloc": SIZE,
        "cudaFree": bench.buffer(),
    }[what]
    bench.begin()
    assert bench.status(what, argument) == "cudaErrorStreamCaptureUnsupported"
    assert bench.status("cudaStreamEndCapture", bench.stream) == "cudaErrorStreamCaptureInvalidated"
    assert bench.status(what, argument) == "cudaSuccess"


def test_host_memory_in_a_capture(bench: Bench) -> None:
    array, buffer = np.zeros(SIZE, np.uint8), bench.buffer()
    bench.begin()
    with pytest.raises(Misuse, match="host memory is copied in a capture"):
        bench.copy(buffer, array.ctypes.data, kind="cudaMemcpyHostToDevice")


def test_captured_by_one_thread_used_by_another(bench: Bench) -> None:
    source, target = bench.buffer(), bench.buffer()
    bench.begin()
    assert "another thread" in in_a_thread(lambda: bench.copy(target, source))


def test_a_capture_records_and_does_not_run(bench: Bench) -> None:
    source, target = bench.buffer(), bench.buffer()
    bench.value("cudaMemsetAsync", source, 5, SIZE, bench.stream)
    bench.value("cudaMemsetAsync", target, 1, SIZE, bench.stream)
    graph = bench.captured(lambda: bench.copy(target, source))
    bench.wait()
    assert (bench.bytes_at(target) == 1).all()
    bench.value("cudaGraphLaunch", graph, bench.stream)
    bench.wait()
    assert (bench.bytes_at(target) == 5).all()


def test_a_replay_uses_the_recorded_addresses(bench: Bench) -> None:
    context = bench.ready()
    context.execute_async_v3(int(bench.stream))
    graph = bench.captured(lambda: context.execute_async_v3(int(bench.stream)))
    bench.value("cudaFree", bench.addresses["sample"])
    bench.value("cudaGraphLaunch", graph, bench.stream)
    with pytest.raises(Misuse, match="use after free"):
        bench.wait()


@pytest.mark.parametrize("change", ["shape", "address", "memory"])
def test_a_context_changed_after_its_capture(bench: Bench, change: str) -> None:
    context = bench.ready()
    context.execute_async_v3(int(bench.stream))
    graph = bench.captured(lambda: context.execute_async_v3(int(bench.stream)))
    bench.wait()
    changes: dict[str, Callable[[], object]] = {
        "shape": lambda: context.set_input_shape("latent_sample", (2, 4, 8, 8)),
        "address": lambda: context.set_tensor_address("sample", bench.buffer(8192)),
        "memory": lambda: context.set_device_memory(bench.buffer(8192), 8192),
    }
    changes[change]()
    bench.value("cudaGraphLaunch", graph, bench.stream)
    with pytest.raises(Misuse, match="changed after its work was captured"):
        bench.wait()


def test_a_context_destroyed_after_its_capture(bench: Bench) -> None:
    context = bench.ready()
    context.execute_async_v3(int(bench.stream))
    graph = bench.captured(partial(context.execute_async_v3, int(bench.stream)))
    bench.wait()
    del context
    bench.value("cudaGraphLaunch", graph, bench.stream)
    with pytest.raises(Misuse, match="destroyed"):
        bench.wait()


def test_a_destroyed_graph_is_launched(bench: Bench) -> None:
    graph = bench.captured(lambda: None)
    bench.value("cudaGraphExecDestroy", graph)
    with pytest.raises(Misuse, match="destroyed"):
        bench.value("cudaGraphLaunch", graph, bench.stream)


# Contexts.


def test_capture_without_a_run_before(bench: Bench) -> None:
    context = bench.ready()
    bench.begin()
    assert not context.execute_async_v3(int(bench.stream))
    assert "without a run before" in bench.log.lines[-1]
    assert bench.status("cudaStreamEndCapture", bench.stream) == "cudaErrorStreamCaptureInvalidated"


def test_a_context_that_captures_itself_in_a_capture(hand_bundle: Bundle, tmp_path: Path) -> None:
    bench = Bench(hand_bundle.graph("vae_decoder"), tmp_path, rtx=True)
    context = bench.ready()
    context._replays_itself = True
    context.execute_async_v3(int(bench.stream))
    bench.begin()
    with pytest.raises(Misuse, match="captures itself"):
        context.execute_async_v3(int(bench.stream))


def test_address_not_set(bench: Bench) -> None:
    context = bench.context()
    context.set_input_shape("latent_sample", (1, 4, 8, 8))
    assert not context.execute_async_v3(int(bench.stream))
    assert bench.log.lines == ["the address of latent_sample, sample is not set"]


def test_address_not_aligned(bench: Bench) -> None:
    with pytest.raises(Misuse, match="no multiple of 256"):
        bench.context().set_tensor_address("sample", bench.buffer() + 4)


def test_address_not_alive(bench: Bench) -> None:
    context = bench.ready()
    bench.value("cudaFree", bench.addresses["latent_sample"])
    assert context.execute_async_v3(int(bench.stream))
    with pytest.raises(Misuse, match="use after free"):
        bench.wait()


def test_shape_not_set(bench: Bench) -> None:
    assert not bench.context().execute_async_v3(int(bench.stream))
    assert bench.log.lines == ["the shape of latent_sample is not set"]


def test_shape_outside_the_profile(bench: Bench) -> None:
    assert not bench.context().set_input_shape("latent_sample", (3, 4, 8, 8))
    assert "outside profile 0" in bench.log.lines[-1]


def test_profile_that_is_not_there(bench: Bench) -> None:
    assert not bench.context().set_optimization_profile_async(1, int(bench.stream))


def test_device_memory_not_given(bench: Bench) -> None:
    context = bench.ready()
    context._memory = None
    with pytest.raises(Misuse, match="without device memory"):
        context.execute_async_v3(int(bench.stream))


def test_device_memory_too_small_is_refused_in_the_log_alone(bench: Bench) -> None:
    context = bench.context()
    context.set_device_memory(bench.buffer(), SIZE)
    assert "256 bytes are too few" in bench.log.lines[-1]
    assert context._memory is None


def test_device_memory_for_a_context_that_has_its_own(bench: Bench) -> None:
    context = bench.context(strategy=double.ExecutionContextAllocationStrategy.STATIC)
    with pytest.raises(Misuse, match="has its own"):
        context.set_device_memory(bench.buffer(4096), 4096)


def test_a_profile_that_is_chosen_forgets_everything(bench: Bench) -> None:
    context = bench.ready()
    assert context.set_optimization_profile_async(0, int(bench.stream))
    assert not context.execute_async_v3(int(bench.stream))
    assert bench.log.lines == ["the shape of latent_sample is not set"]
    context.set_input_shape("latent_sample", (1, 4, 8, 8))
    assert not context.execute_async_v3(int(bench.stream))
    assert "the address of latent_sample, sample is not set" in bench.log.lines[-1]
    for name, address in bench.addresses.items():
        context.set_tensor_address(name, address)
    with pytest.raises(Misuse, match="without device memory"):
        context.execute_async_v3(int(bench.stream))


def test_a_failed_call_of_ours_is_not_tensorrts(bench: Bench) -> None:
    context = bench.ready()
    assert bench.status("cudaMalloc", 1 << 40) == "cudaErrorMemoryAllocation"
    assert context.execute_async_v3(int(bench.stream))
    assert bench.status("cudaGetLastError") == "cudaErrorMemoryAllocation"
    assert bench.status("cudaGetLastError") == "cudaSuccess"


def test_a_device_that_fails_in_a_kernel_of_tensorrts(bench: Bench) -> None:
    context = bench.ready()
    bench.cuda.break_device("cudaErrorIllegalAddress")
    assert bench.status("cudaGetLastError") == "cudaSuccess", "the last error is of the other CUDA runtime"
    assert not context.execute_async_v3(int(bench.stream))
    assert "Cuda Runtime (cudaErrorIllegalAddress)" in bench.log.lines[-1]
    for name, argument in (
        ("cudaStreamQuery", bench.stream),
        ("cudaStreamSynchronize", bench.stream),
        ("cudaMalloc", 1),
    ):
        assert bench.status(name, argument) == "cudaErrorIllegalAddress"


def test_a_stream_that_has_work_is_not_ready(bench: Bench) -> None:
    bench.value("cudaMemsetAsync", bench.buffer(), 3, SIZE, bench.stream)
    assert bench.status("cudaStreamQuery", bench.stream) == "cudaErrorNotReady"
    bench.wait()
    assert bench.status("cudaStreamQuery", bench.stream) == "cudaSuccess"


def test_a_runtime_config_of_tensorrts(bench: Bench) -> None:
    with pytest.raises(Misuse, match="a runtime config is made by TensorRT"):
        bench.engine.create_runtime_config()


def test_a_second_logger_is_warned_of_and_the_first_must_live(bench: Bench) -> None:
    other = Log()
    second = bench.trt.Runtime(other)
    assert "differs from one already registered" in bench.log.lines[-1]
    assert other.lines == []
    bench.trt.say("WARNING", "from a thread")
    assert bench.log.lines[-1] == "from a thread"
    del bench.log, bench.engine._logger
    with pytest.raises(Misuse, match="logger that was freed"):
        bench.trt.say("WARNING", "from a thread")
    with pytest.raises(Misuse, match="was freed, and TensorRT has objects still"):
        bench.trt.Runtime(other)
    del second


def test_outputs_have_the_shapes_that_inputs_give_them(bench: Bench) -> None:
    context = bench.context()
    assert context.get_tensor_shape("sample") == (-1, 3, 16, 16)
    context.set_input_shape("latent_sample", (2, 4, 8, 8))
    assert context.get_tensor_shape("latent_sample") == (2, 4, 8, 8)
    assert context.get_tensor_shape("sample") == (2, 3, 16, 16)


def test_context_shared_between_threads(bench: Bench) -> None:
    context = bench.ready()
    assert "thread" in in_a_thread(lambda: context.execute_async_v3(int(bench.stream)))


def test_engines_write_over_what_others_left_in_the_shared_block(bench: Bench) -> None:
    context = bench.ready()
    before = bench.bytes_at(bench.block, 4096).copy()
    context.execute_async_v3(int(bench.stream))
    bench.wait()
    assert (bench.bytes_at(bench.block, 4096) != before).all()


def test_logger_without_its_base_class(bench: Bench) -> None:
    class Bad(ILogger):
        def __init__(self) -> None:
            pass

    with pytest.raises(Misuse, match="logger"):
        bench.trt.Runtime(Bad())


def test_host_code_that_is_not_allowed(hand_bundle: Bundle, tmp_path: Path) -> None:
    write_plan(tmp_path / "model.plan", hand_bundle.graph("unet"), [(1, 1, 2)], host_code=True)
    log = Log()
    runtime = TensorRtDouble(CudaDouble()).Runtime(log)
    assert runtime.deserialize_cuda_engine((tmp_path / "model.plan").read_bytes()) is None
    assert "host code is not allowed" in log.lines[-1]
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine((tmp_path / "model.plan").read_bytes()) is not None


def test_what_is_not_given_back_is_counted(bench: Bench) -> None:
    bench.buffer()
    bench.value("cudaEventCreateWithFlags", 0)
    bench.captured(lambda: None)
    assert bench.cuda.leaks() == {"bytes": SIZE, "streams": 1, "events": 1, "graphs": 1, "graph executables": 1}
    assert bench.trt.leaks() == {"ICudaEngine": 1}


# The doubles' names are the real ones.


def test_functions_take_what_cuda_python_takes() -> None:
    for name, parameters in API["functions"].items():
        found = list(inspect.signature(getattr(CudaDouble, name)).parameters)
        assert found == ["self", *parameters], name


def test_every_function_of_the_double_is_recorded() -> None:
    made = {name for name in vars(CudaDouble) if name.startswith("cuda")}
    assert made == API["functions"].keys() | API["constants"].keys() | API["enums"].keys()


@pytest.mark.parametrize("version", ["10.16", "11.4", "rtx-1.7"])
def test_names_of_the_double_are_tensorrts(version: str) -> None:
    api = json.loads((RECORDED / f"{version}.json").read_text())
    classes = (double.Runtime, double.ICudaEngine, double.IRuntimeConfig, double.IExecutionContext, double.ILogger)
    made = {cls.__name__: {name for name in vars(cls) if not name.startswith("_")} for cls in classes}
    for name, attributes in made.items():
        assert attributes <= set(api[name]["attrs"]), name
    enums = [value for value in vars(double).values() if isinstance(value, enum.EnumMeta)]
    if version == "rtx-1.7":
        context = {name for name in vars(double.RtxExecutionContext) if not name.startswith("_")}
        assert context <= set(api["IExecutionContext"]["attrs"])
        config = {*vars(double.RtxRuntimeConfig), *vars(double.RtxRuntimeConfig(TensorRtDouble(CudaDouble())))}
        for names, recorded in ((config, "IRuntimeConfig"), (set(vars(double.IRuntimeCache)), "IRuntimeCache")):
            assert {name for name in names if not name.startswith("_")} <= set(api[recorded]["attrs"])
    else:
        enums = [kind for kind in enums if kind not in double.RTX_ENUMS]
    for kind in enums:
        assert set(kind.__members__) <= set(api[kind.__name__]["enum"]), kind.__name__
    assert {name for name in vars(TensorRtDouble) if not name.startswith("_")} - {"leaks", "say"} <= api.keys()


def in_a_thread(work: Callable[[], object]) -> str:
    """Return the error that a call raises in another thread."""
    errors: list[str] = []

    def run() -> None:
        try:
            work()
        except Misuse as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return " ".join(errors)
