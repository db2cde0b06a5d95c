"""The GPU tests' own code, on the doubles, so that on a real GPU they fail only for what they test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdrt import Pipeline
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BackendName, EngineSet
from sdrt.artefacts.store import Store
from sdrt.engines.build import build_key
from sdrt.engines.request import BuildRequest
from sdrt.libraries.cuda import Cuda
from sdrt.machine import nvidia
from tests.command_line import CommandLine
from tests.doubles.cuda_double.plans import COMPONENTS, double_set
from tests.doubles.cuda_double.rig import cpu_session
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import TensorRtDouble
from tests.gpu import test_tensorrt_gpu as gpu

Opened = Callable[..., Pipeline]


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def carried(request: pytest.FixtureRequest, hand_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Write a double's set with every component."""
    backend: BackendName = request.param
    components = (*COMPONENTS, "vae_encoder")
    return double_set(hand_bundle, tmp_path_factory.mktemp("gpu"), backend=backend, components=components)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plans(carried: EngineSet, store: Store, monkeypatch: pytest.MonkeyPatch) -> EngineSet:
    """Put the set into a store, on a machine with a fake GPU."""
    cuda = CudaDouble(memory_bytes=32 << 20)
    trt = TensorRtDouble(cuda, rtx=carried.manifest.backend == "tensorrt-rtx")
    monkeypatch.setattr("sdrt.runtime.backends.tensorrt.libraries", lambda backend: (trt, Cuda(cuda)))
    monkeypatch.setattr("sdrt.runtime.backends.opening.available", lambda backend: None)
    monkeypatch.setattr("sdrt.runtime.backends.opening.check_host", lambda manifest: None)
    monkeypatch.setattr(Cuda, "open", lambda extra: Cuda(cuda))
    return store.import_engines(carried.path, trust=carried.digest)


@pytest.fixture
def opened(plans: EngineSet) -> Iterator[Opened]:
    pipelines: list[Pipeline] = []

    def make(**options: object) -> Pipeline:
        pipelines.append(Pipeline(plans, **options))  # type: ignore[arg-type]
        return pipelines[-1]

    yield make
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def reference(carried: EngineSet, hand_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    with monkeypatch.context() as patch:
        patch.setattr("sdrt.pipeline.open_session", lambda *_, **__: cpu_session(carried, hand_bundle))
        return Pipeline(carried)


@pytest.mark.parametrize(
    "test",
    [
        gpu.test_a_picture_is_repeated_bit_by_bit,
        gpu.test_a_picture_is_repeated_bit_by_bit_by_the_next_process,
        gpu.test_a_session_after_another_does_not_compile_again,
        gpu.test_an_interrupted_run_leaves_a_pipeline_that_runs,
        gpu.test_a_callback_sees_finite_latents_of_every_step,
        gpu.test_steps_are_timed_by_the_device,
        gpu.test_what_is_not_finite_names_its_step,
        gpu.test_memory_is_what_is_reported_and_comes_back,
        gpu.test_the_fused_loop_is_the_plain_one,
    ],
)
def test_of_a_pipeline(test: Callable[[Opened], None], opened: Opened) -> None:
    test(opened)


@pytest.mark.parametrize("loop", ["auto", "plain"])
def test_of_graphs(opened: Opened, loop: str) -> None:
    gpu.test_results_are_the_same_with_graphs_and_without(opened, loop)


def test_of_pictures(opened: Opened, reference: Pipeline) -> None:
    gpu.test_pictures_are_the_cpus(opened, reference, 7.5, 3)


@pytest.mark.parametrize("test", [gpu.test_a_batch_outside_the_profile_is_refused, gpu.test_out_of_memory_is_named])
def test_of_a_set(test: Callable[[EngineSet], None], plans: EngineSet) -> None:
    test(plans)


@pytest.mark.parametrize("switch", ["--cuda-graphs", "--no-cuda-graphs"])
def test_of_the_command(plans: EngineSet, store: Store, sdrt: CommandLine, tmp_path: Path, switch: str) -> None:
    gpu.test_the_command_says_how_it_ran_and_repeats_it(plans, store, sdrt, tmp_path, switch)


def test_of_components(plans: EngineSet) -> None:
    """Compare inputs and outputs of a component opened alone; another seed must give others."""
    for name in plans.manifest.components:
        if name == "denoise_step":
            continue
        one, two = (gpu.outputs(plans, name, gpu.inputs(plans, name, 2, seed)) for seed in (1, 2))
        assert one.shape == two.shape
        assert (one != two).any()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("architecture", ["sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121"])
def test_of_building_plans(
    backend: BackendName, architecture: str, store: Store, hand_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the recipe of each backend on every GPU; RTX's plans are skipped where it is not supported."""
    here = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("A GPU", architecture, 24 << 30),))
    monkeypatch.setattr(nvidia, "driver", lambda: here)
    monkeypatch.setattr("sdrt.machine.packages.version", lambda name: "11.4.0")
    monkeypatch.setattr(gpu, "open_bundle", lambda *_, **__: hand_bundle)
    asked: list[BuildRequest] = []
    monkeypatch.setattr(gpu, "build", lambda bundle, request, *_: asked.append(request))
    if backend == "tensorrt-rtx" and architecture in ("sm90", "sm100", "sm103"):
        with pytest.raises(pytest.skip.Exception, match=f"does not run on A GPU .{architecture}"):
            gpu.build_plans(backend, "sd-v1-default", Path("checkpoint"), store)
        assert asked == []
        return
    gpu.build_plans(backend, "sd-v1-default", Path("checkpoint"), store)
    (request,) = asked
    key = build_key(hand_bundle, request)
    assert key.host == {"gpu": architecture}


def test_every_gpu_test_is_run_here_but_those_that_build() -> None:
    here = Path(__file__).read_text()
    names = {name for name in vars(gpu) if name.startswith("test_")}
    builds = {"test_the_throughput_recipe_fills_its_batch", "test_components_are_the_cpus_inside_the_profile_too"}
    assert {name for name in names if f"gpu.{name}" not in here} == builds
