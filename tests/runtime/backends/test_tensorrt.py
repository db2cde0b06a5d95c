"""TensorRT's engines on the doubles: against the CPU, shared memory, profiles, and failures."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import TOKENIZER, BatchRange, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, TrustError, UsageError
from sdrt.install_lines import extra_line
from sdrt.libraries.cuda import Cuda
from sdrt.machine import nvidia
from sdrt.runtime.backends.registry import available
from sdrt.runtime.backends.tensorrt import TensorRtSession, open_alone
from sdrt.runtime.backends.tensorrt_engine import TensorRtEngine
from tests.doubles.cuda_double.memory import Misuse
from tests.doubles.cuda_double.rig import Rig, cpu_session
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import ICudaEngine, IExecutionContext, TensorRtDouble
from tests.doubles.progress import Notes
from tests.models.tiny_bundle import feeds

MakePlans = Callable[..., EngineSet]
ONE_SHOT: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")


def engine_of(rig: Rig, name: ComponentName) -> TensorRtEngine:
    engine = rig.session.engine(name)
    assert isinstance(engine, TensorRtEngine)
    return engine


def spoil(engines: EngineSet, name: ComponentName, data: bytes) -> None:
    (engines.path / engines.component(name).file).write_bytes(data)


@pytest.mark.parametrize("name", ONE_SHOT)
@pytest.mark.parametrize("rtx", [False, True])
def test_an_engine_gives_what_the_cpu_gives(
    plans: EngineSet, hand_bundle: Bundle, name: ComponentName, rtx: bool
) -> None:
    with Rig(plans, rtx=rtx) as rig, cpu_session(plans, hand_bundle) as cpu:
        for batch in (1, 3, 3, 2, 1):
            given = feeds(name, batch, seed=batch)
            expected = cpu.engine(name).run(**given)
            outputs = rig.session.engine(name).run(**given)
            # The same library runs the same graph with the same settings: every bit is the same.
            assert all(np.array_equal(outputs[key], expected[key]) for key in expected)
            other = rig.session.engine(name).run(**feeds(name, batch, seed=99))
            assert not any(np.array_equal(other[key], expected[key]) for key in expected)


def test_outputs_are_not_touched_by_later_runs(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        first = rig.session.engine("unet").run(**feeds("unet", 2, seed=1))["out_sample"]
        kept = first.copy()
        rig.session.engine("unet").run(**feeds("unet", 2, seed=2))
        assert np.array_equal(first, kept)


def test_engines_share_one_block_of_the_size_that_the_largest_needs(make_plans: MakePlans) -> None:
    needs = {"text_encoder": 4096, "unet": 65536, "vae_decoder": 9000}
    with Rig(make_plans(activation_bytes=needs)) as rig:
        assert set(rig.session.device_bytes.values()) == {0}
        for name in ONE_SHOT:
            rig.session.engine(name)
        held = {name: count for name, count in rig.session.device_bytes.items() if count}
        assert held == {"weights": 3 * 1234, "activations": 65536, "total": 69238}


def test_a_block_that_grew_moves_for_all(make_plans: MakePlans) -> None:
    with Rig(make_plans(activation_bytes={"unet": 1 << 20})) as rig:
        text = rig.session.engine("text_encoder")
        before = text.run(**feeds("text_encoder", 1))["last_hidden_state"]
        rig.session.engine("unet").run(**feeds("unet", 1))
        assert np.array_equal(text.run(**feeds("text_encoder", 1))["last_hidden_state"], before)


def test_contexts_not_told_that_the_block_moved_are_caught(
    make_plans: MakePlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(make_plans(activation_bytes={"unet": 1 << 20}))
    rig.session.engine("text_encoder").run(**feeds("text_encoder", 1))
    rig.session.engine("unet")
    monkeypatch.setattr(TensorRtEngine, "share_activations", lambda self: None)
    with pytest.raises(Misuse, match="use after free"):
        rig.session.engine("text_encoder").run(**feeds("text_encoder", 1))


def test_buffers_are_taken_and_addresses_set_once_for_a_batch(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        engine = engine_of(rig, "unet")
        engine.run(**feeds("unet", 2))
        taken, generation = rig.cuda.calls.count("cudaMalloc"), engine.generation
        for seed in range(3):
            engine.run(**feeds("unet", 2, seed=seed))
        assert rig.cuda.calls.count("cudaMalloc") == taken
        assert engine.generation == generation
        assert engine.buffer_bytes >= 2 * (4 * 64 * 4 * 2 + 7 * 8 * 4)
        engine.run(**feeds("unet", 3))
        assert rig.cuda.calls.count("cudaMalloc") == taken + 1


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_the_profile_is_chosen_by_batch(make_plans: MakePlans, batch: int, profile: int) -> None:
    # The best profile for a batch: one optimised for it, else the narrowest.
    engines = make_plans(profiles=((1, 1, 4), (1, 2, 4), (3, 3, 4)))
    with Rig(engines) as rig:
        engine = engine_of(rig, "vae_decoder")
        engine.run(**feeds("vae_decoder", batch))
        assert engine._context.active_optimization_profile == profile


def test_a_batch_outside_every_profile_names_the_ranges(make_plans: MakePlans) -> None:
    engines = make_plans(profiles=((1, 1, 1), (3, 4, 4)))
    with Rig(engines) as rig:
        decoder = rig.session.engine("vae_decoder")
        with pytest.raises(UsageError, match=re.escape("was built for batches of 1 to 1, 3 to 4; got 2")) as caught:
            decoder.run(**feeds("vae_decoder", 2))
        assert "--recipe" in caught.value.hint
        decoder.run(**feeds("vae_decoder", 3))
        with pytest.raises(UsageError, match="1 to 4; got 5"):
            decoder.run(**feeds("vae_decoder", 5))


def test_row_22_a_flipped_byte_never_reaches_the_deserialiser(make_plans: MakePlans) -> None:
    engines = make_plans()
    data = bytearray((engines.path / engines.component("unet").file).read_bytes())
    data[-3] ^= 1
    for changed in (bytes(data), bytes(data[:-5]), b""):
        spoil(engines, "unet", changed)
        with Rig(engines) as rig, pytest.raises(TrustError, match="does not match its digest"):
            rig.session.engine("unet")
        assert rig.trt._deserialised == 0


def test_row_26_a_null_engine_reports_the_log(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        with pytest.raises(EngineError, match=r"cannot open .*: \[runtime.cpp.*magic tag does not match") as caught:
            rig.session._device.deserialise(plans, TOKENIZER)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "line",
    [
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (17920000000 bytes) could not be allocated..",
        "[executionContext.cpp::644] Error Code 2: OutOfMemory (Requested size was 9 bytes.)",
        "[tunable_graph.cpp:create:117] autotuning: User allocator error allocating 15485030400-byte buffer",
        "Cuda Runtime (cudaErrorMemoryAllocation)",
    ],
)
def test_out_of_memory_in_tensorrt_is_told_from_its_log(
    plans: EngineSet, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    with Rig(plans) as rig:
        engine = engine_of(rig, "unet")
        engine.bind(1)
        lines = [""]

        def fails(context: IExecutionContext, stream: int) -> bool:
            for said in filter(None, lines):
                context._refuse(said)
            return False

        monkeypatch.setattr(IExecutionContext, "execute_async_v3", fails)
        with pytest.raises(EngineError, match="unet failed: its log says nothing"):
            engine.run(**feeds("unet", 1))
        lines.append(line)
        with pytest.raises(ResourceError, match="out of GPU memory"):
            engine.run(**feeds("unet", 1))
        lines.clear()
        # Its log of another failure is not repeated.
        with pytest.raises(EngineError, match="unet failed: its log says nothing"):
            engine.run(**feeds("unet", 1))


def test_memory_that_tensorrt_refuses_is_an_error(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the log, since TensorRT returns nothing and would compute in memory that it was not given."""
    with Rig(plans) as rig:
        engine = engine_of(rig, "unet")
        monkeypatch.setattr(ICudaEngine, "device_memory_size_v2", 1 << 20)
        with pytest.raises(EngineError, match=r"refuses the 4096 bytes to compute in: .*setDeviceMemoryV2"):
            engine.run(**feeds("unet", 1))


def test_a_failure_of_ours_is_not_left_for_others_to_find(plans: EngineSet) -> None:
    with Rig(plans, CudaDouble(fails={("cudaMemsetAsync", 1): "cudaErrorMemoryAllocation"})) as rig:
        cuda, stream = rig.session._device.cuda, rig.session._device.stream
        block = cuda.allocate(256)
        with pytest.raises(ResourceError):
            cuda.zero(block.address, 256, stream)
        cuda.free(block)
        assert rig.cuda.cudaGetLastError()[0].name == "cudaSuccess"
        rig.session.engine("unet").run(**feeds("unet", 1))


def test_a_device_that_fails_in_a_kernel_of_tensorrts_is_told_as_lost(plans: EngineSet) -> None:
    """Fail in TensorRT's own CUDA runtime, whose log says only that it failed."""
    rig = Rig(plans)
    engine = engine_of(rig, "unet")
    engine.run(**feeds("unet", 1))
    rig.cuda.break_device("cudaErrorIllegalAddress")
    assert rig.cuda.cudaGetLastError()[0].name == "cudaSuccess", "our runtime has launched nothing"
    with pytest.raises(BackendUnavailableError, match=r"the GPU failed: .* gave cudaErrorIllegalAddress") as caught:
        engine.enqueue()
    assert (caught.value.exit_code, rig.session._device.cuda.lost) == (4, True)
    assert "Xid" in caught.value.hint
    rig.session.close()


def test_a_failure_on_a_busy_device_is_tensorrts(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(plans) as rig:
        engine = engine_of(rig, "unet")
        engine.bind(1)
        engine.enqueue()
        monkeypatch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: context._refuse("no"))
        with pytest.raises(EngineError, match="unet failed: no"):
            engine.enqueue()
        assert rig.cuda.calls[-1] == "cudaStreamQuery"
        assert rig.cuda.cudaGetLastError()[0].name == "cudaSuccess"


@pytest.mark.parametrize("lost", [False, True])
def test_a_stream_is_not_asked_while_it_is_captured(
    plans: EngineSet, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    rig = Rig(plans)
    engine = engine_of(rig, "unet")
    engine.bind(1)
    engine.enqueue()
    cuda, stream = rig.session._device.cuda, rig.session._device.stream
    cuda.wait(stream)

    def refused(context: IExecutionContext, stream: int) -> bool:
        if lost:
            rig.cuda.break_device("cudaErrorLaunchFailure")
        return context._refuse("not capturable")

    monkeypatch.setattr(IExecutionContext, "execute_async_v3", refused)
    kind, says = (BackendUnavailableError, "the GPU failed") if lost else (EngineError, "not capturable")
    with pytest.raises(kind, match=says):
        cuda.capture(stream, engine.enqueue)
    assert rig.cuda.calls.count("cudaStreamQuery") == 1
    assert not rig.cuda.capturing
    rig.session.close()


# TensorRT's log.


def test_there_is_one_logger_however_many_sessions(plans: EngineSet) -> None:
    cuda, notes = CudaDouble(), list[str]()
    trt = TensorRtDouble(cuda)
    first, second = (TensorRtSession(plans, trt, Cuda(cuda), progress=Notes(notes)) for _ in range(2))
    first.engine("unet").run(**feeds("unet", 1))
    first.close()
    # TensorRT's own thread writes to its first logger.
    trt.say("WARNING", "from a thread")
    second.engine("unet").run(**feeds("unet", 1))
    second.close()
    assert notes == []


def test_an_error_carries_the_log_of_its_own_session(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaDouble()
    trt = TensorRtDouble(cuda)
    one, two = (TensorRtSession(plans, trt, Cuda(cuda)) for _ in range(2))
    monkeypatch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: context._refuse("mine"))
    with pytest.raises(EngineError, match=r"unet failed: mine$"):
        one.engine("unet").run(**feeds("unet", 1))
    with pytest.raises(EngineError, match=r"vae_decoder failed: mine$"):
        two.engine("vae_decoder").run(**feeds("vae_decoder", 1))
    assert [session._device.failures for session in (one, two)] == [1, 1]
    one.close()
    two.close()


@pytest.mark.parametrize("rtx", [False, True])
def test_a_warning_of_an_opening_that_succeeds_is_told_once(make_plans: MakePlans, rtx: bool) -> None:
    warning = "Using an engine plan file across different models of devices\n is not recommended"
    with Rig(make_plans(warnings=[warning]), rtx=rtx) as rig:
        rig.session.engine("unet")
        rig.session.engine("vae_decoder")
        (note,) = rig.notes
    assert note.endswith("unet/model.plan: TensorRT warns: " + warning.replace("\n ", " "))


@pytest.mark.parametrize("batches", [(1, 2, 1), (4, 1, 2, 4)])
def test_a_context_is_told_everything_again_after_a_change_of_profile(
    make_plans: MakePlans, hand_bundle: Bundle, batches: tuple[int, ...]
) -> None:
    engines = make_plans(profiles=((1, 1, 1), (2, 2, 2), (1, 4, 4)))
    with Rig(engines) as rig, cpu_session(engines, hand_bundle) as cpu:
        for batch in batches:
            given = feeds("vae_decoder", batch)
            outputs = rig.session.engine("vae_decoder").run(**given)
            assert np.array_equal(outputs["sample"], cpu.engine("vae_decoder").run(**given)["sample"])


def test_shapes_that_tensorrt_cannot_infer_are_an_error(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(context: IExecutionContext) -> list[str]:
        context._refuse("[shapeMachine.cpp] broadcast dimensions must be conformable")
        raise RuntimeError("inferShapes failed")

    monkeypatch.setattr(IExecutionContext, "infer_shapes", fails)
    with Rig(plans) as rig, pytest.raises(EngineError, match=r"unet: TensorRT cannot infer shapes: .*conformable"):
        rig.session.engine("unet").run(**feeds("unet", 1))


def test_outputs_of_another_size_than_there_is_room_for_are_an_error(
    plans: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IExecutionContext, "get_tensor_shape", lambda context, name: (2, 4, 8, 8))
    with Rig(plans) as rig, pytest.raises(EngineError, match=r"gives out_sample as \(2, 4, 8, 8\); the manifest says"):
        rig.session.engine("unet").run(**feeds("unet", 1))


def test_a_runtime_that_is_not_made_says_why(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_runtime(trt: TensorRtDouble, logger: Any) -> None:
        logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(TensorRtDouble, "Runtime", no_runtime)
    cuda = CudaDouble()
    with pytest.raises(BackendUnavailableError, match="does not start: CUDA initialization failure") as caught:
        Rig(plans, cuda)
    assert "sdrt doctor" in caught.value.hint
    assert cuda.leaks() == {}


@pytest.mark.parametrize("rtx", [False, True])
def test_nothing_is_collected_while_tensorrt_works(
    plans: EngineSet, monkeypatch: pytest.MonkeyPatch, rtx: bool
) -> None:
    """Check that no collection starts in a call to the log, which may wait for ever (sdrt.machine.gc_pause)."""
    seen: dict[str, bool] = {}

    def spy(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def called(*arguments: Any) -> Any:
            seen[name] = gc.isenabled()
            return original(*arguments)

        monkeypatch.setattr(kind, name, called)

    of_contexts = ("set_input_shape", "infer_shapes", "execute_async_v3")
    for name in of_contexts:
        spy(IExecutionContext, name)
    of_engines = ("create_execution_context", *(["create_runtime_config"] if rtx else []))
    for name in of_engines:
        spy(ICudaEngine, name)
    with Rig(plans, rtx=rtx) as rig:
        rig.session.engine("unet").run(**feeds("unet", 1))
        assert gc.isenabled()
    assert seen == dict.fromkeys((*of_contexts, *of_engines), False)


def test_a_plan_of_another_graph_is_refused(make_plans: MakePlans) -> None:
    engines = make_plans()
    parts = dict(engines.manifest.components)
    parts["unet"] = parts["unet"].model_copy(update={"file": parts["vae_decoder"].file})
    object.__setattr__(engines, "manifest", engines.manifest.model_copy(update={"components": parts}))
    with Rig(engines) as rig, pytest.raises(EngineError, match="lacks the float32 tensor sample"):
        rig.session.engine("unet")


@pytest.mark.parametrize(
    ("host", "here", "fits"),
    [
        ("sm86", (8, 6), True),
        ("sm86 sm89 sm120", (12, 0), True),
        ("sm80+", (12, 0), True),
        ("sm80+", (7, 5), False),
        ("sm86 sm89", (9, 0), False),
        ("", (9, 0), True),
    ],
)
def test_a_set_for_other_gpus_is_refused_before_anything_opens(
    make_plans: MakePlans, host: str, here: tuple[int, int], fits: bool
) -> None:
    engines = make_plans(host={"gpu": host} if host else {})
    cuda = CudaDouble(compute_capability=here)
    if fits:
        with Rig(engines, cuda) as rig:
            rig.session.engine("unet")
        return
    with pytest.raises(BackendUnavailableError, match=f"this GPU is sm{here[0]}{here[1]}"):
        Rig(engines, cuda)
    assert cuda.leaks() == {}


def test_a_plan_with_host_code_is_opened_when_it_is_what_was_sealed(make_plans: MakePlans) -> None:
    """Use a version_compatible plan: it contains a lean runtime, which TensorRT opens only if allowed."""
    with Rig(make_plans(host_code=True)) as rig:
        rig.session.engine("unet").run(**feeds("unet", 1))


def test_a_closed_engine_says_so(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        engine = rig.session.engine("unet")
        engine.close()
        with pytest.raises(EngineError, match="unet is closed"):
            engine.run(**feeds("unet", 1))


def test_closing_twice_is_closing(plans: EngineSet) -> None:
    with Rig(plans) as rig:
        rig.session.engine("unet").run(**feeds("unet", 1))
        rig.session.close()
        rig.session.close()


def test_an_engine_opened_alone_gives_everything_back(plans: EngineSet) -> None:
    cuda = CudaDouble()
    trt = TensorRtDouble(cuda)
    with open_alone(plans, "vae_decoder", trt, Cuda(cuda)) as engine:
        engine.run(**feeds("vae_decoder", 1))
        assert cuda.leaks()
    assert (cuda.leaks(), trt.leaks()) == ({}, {})
    small = CudaDouble(memory_bytes=1000)
    with pytest.raises(ResourceError):
        open_alone(plans, "vae_decoder", TensorRtDouble(small), Cuda(small))
    assert small.leaks() == {}


def test_a_leak_is_found(plans: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "free", lambda self, buffer: None)
    rig = Rig(plans)
    rig.session.engine("unet").run(**feeds("unet", 1))
    rig.session.close()
    assert "bytes" in rig.leaks()


@pytest.mark.parametrize("memory_bytes", [0, 4095, 5000, 9000, 12000])
def test_out_of_memory_says_how_much_and_what_fits(plans: EngineSet, memory_bytes: int) -> None:
    with Rig(plans, CudaDouble(memory_bytes=memory_bytes)) as rig:
        with pytest.raises(ResourceError, match=r"\d+ bytes are needed, \d+ of \d+ are free") as caught:
            rig.session.engine("unet").run(**feeds("unet", 4))
        assert caught.value.exit_code == 6
        assert "fewer pictures" in caught.value.hint
        assert "--recipe sd-v1-latency" in caught.value.hint


def test_out_of_memory_names_a_batch_that_fits(plans: EngineSet) -> None:
    with Rig(plans, CudaDouble(memory_bytes=12000)) as rig:
        with pytest.raises(ResourceError) as caught:
            rig.session.engine("unet").run(**feeds("unet", 4))
        fitting = int(re.match(r"a batch of (\d+) fits now: ask for fewer", caught.value.hint)[1])  # type: ignore[index]
        assert 1 <= fitting < 4
        rig.session.engine("unet").run(**feeds("unet", fitting))
        with pytest.raises(ResourceError):
            rig.session.engine("unet").run(**feeds("unet", fitting + 1))


def test_after_out_of_memory_a_smaller_batch_runs(plans: EngineSet, hand_bundle: Bundle) -> None:
    with Rig(plans, CudaDouble(memory_bytes=12000)) as rig, cpu_session(plans, hand_bundle) as cpu:
        with pytest.raises(ResourceError):
            rig.session.engine("unet").run(**feeds("unet", 4))
        outputs = rig.session.engine("unet").run(**feeds("unet", 1))
        assert np.array_equal(outputs["out_sample"], cpu.engine("unet").run(**feeds("unet", 1))["out_sample"])


def test_an_engine_that_was_built_for_less_than_its_spec_says(plans: EngineSet) -> None:
    # The spec's range is checked first; the plan's own range applies, too.
    with Rig(plans) as rig:
        engine = engine_of(rig, "vae_decoder")
        engine.spec = engine.spec.model_copy(update={"batch": BatchRange(min=1, opt=1, max=9)})
        with pytest.raises(UsageError, match="1 to 4; got 9"):
            engine.run(**feeds("vae_decoder", 9))


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        ("cudaErrorECCUncorrectable", BackendUnavailableError, "the GPU failed"),
        ("cudaErrorIllegalAddress", BackendUnavailableError, "the GPU failed"),
        ("cudaErrorInsufficientDriver", BackendUnavailableError, "driver does not serve CUDA"),
        ("cudaErrorMemoryAllocation", ResourceError, "out of GPU memory"),
        ("cudaErrorInvalidValue", EngineError, "cudaStreamSynchronize gave cudaErrorInvalidValue"),
    ],
)
def test_every_status_is_a_named_error(status: str, kind: type[Exception], says: str) -> None:
    cuda = Cuda(CudaDouble(fails={("cudaStreamSynchronize", 1): status}))
    stream = cuda.stream()
    with pytest.raises(kind, match=says):
        cuda.wait(stream)


def test_row_65_without_cuda_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("sdrt.libraries.cuda.import_module", missing)
    with pytest.raises(BackendUnavailableError, match="cuda-bindings is not installed") as caught:
        Cuda.open("rtx")
    assert caught.value.hint == extra_line("rtx")


def test_row_66_a_driver_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    double = CudaDouble(fails={("cudaGetDeviceCount", 1): "cudaErrorInsufficientDriver"})
    monkeypatch.setattr("sdrt.libraries.cuda.import_module", lambda name: double)
    with pytest.raises(BackendUnavailableError, match="cudaGetDeviceCount gave cudaErrorInsufficientDriver"):
        Cuda.open("trt")


def test_row_65_a_gpu_backend_without_cuda_bindings_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "cuda-bindings":
            raise PackageNotFoundError(name)
        return "1.7"

    here = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("RTX 3090", "sm86", 24 << 30),))
    monkeypatch.setattr(nvidia, "driver", lambda: here)
    monkeypatch.setattr("sdrt.machine.packages.version", version)
    with pytest.raises(BackendUnavailableError, match="cuda-bindings is not installed") as caught:
        available("tensorrt-rtx")
    assert caught.value.hint == extra_line("rtx")
    monkeypatch.setattr("sdrt.machine.packages.version", lambda name: "1.7")
    available("tensorrt-rtx")
