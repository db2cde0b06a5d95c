"""Plans on a real GPU: built for it, compared with the CPU, with CUDA graphs and without. make test-gpu runs these.

They need a machine with NVIDIA's driver, and tensorrt or tensorrt-rtx and cuda-python installed; nothing else. What the
doubles cannot show is shown here only: that the real libraries take our calls in this order, that USER_MANAGED memory
goes together with capture and with TensorRT-RTX's own graphs, that a graph's numbers are those of its kernels launched
one by one, fp16's accuracy, times, the driver's own memory, and that CUDA gives back memory after a failed allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrt import Pipeline, Result
from sdrt.engines.build import build
from sdrt.engines.engine_set import BackendName, EngineSet
from sdrt.engines.recipe import DEFAULT, load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.engines.store import Store
from sdrt.errors import NumericError, ResourceError, UsageError
from sdrt.prepare import Source, open_bundle, prepare
from sdrt.progress import silent
from sdrt.runtime.backends import available, nvidia, open_engine
from sdrt.runtime.backends.cuda import Cuda

pytestmark = pytest.mark.gpu

MODULES: dict[BackendName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: What is installed; where nothing is, the tests say so by failing.
BACKENDS = [name for name, module in MODULES.items() if find_spec(module)] or ["tensorrt-rtx"]
STEPS = 10
#: Relative to the largest latent: fp16 keeps 11 bits of each layer's output, and ten guided steps amplify what is lost.
FP16_TOLERANCE = 5e-2
#: Free memory as the driver tells it moves by its own allocations: pools, modules, the context's heap.
DRIVER_BYTES = 512 << 20
SETTINGS: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 3}
PROMPT = "a red circle on a white background"

Opened = Callable[..., Pipeline]


@pytest.fixture(scope="module", params=BACKENDS)
def plans(request: pytest.FixtureRequest, tiny_path: Path, store: Store) -> EngineSet:
    """The tiny checkpoint's plans for the GPU that is here, in the default recipe."""
    backend: BackendName = request.param
    available(backend)
    recipe = load_recipe(DEFAULT, [f"targets={nvidia.driver().gpus[0].architecture}"])
    bundle = open_bundle(Source(checkpoint=str(tiny_path)), store, precision="fp16")
    return build(bundle, BuildRequest(backend, recipe=recipe), store, silent)


@pytest.fixture
def opened(plans: EngineSet) -> Iterator[Opened]:
    """Opens pipelines over the plans, and closes them."""
    pipelines: list[Pipeline] = []

    def make(**options: Any) -> Pipeline:
        pipelines.append(Pipeline(plans, **options))
        return pipelines[-1]

    yield make
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture(scope="module")
def reference(tiny_path: Path, store: Store) -> Iterator[Pipeline]:
    """The same checkpoint in fp32 on the CPU."""
    engines = prepare(Source(checkpoint=str(tiny_path)), backend="onnxruntime", precision="fp32", store=store.root)
    with Pipeline(engines) as pipeline:
        yield pipeline


def difference(one: Result, other: Result) -> float:
    """The largest difference of final latents, relative to the largest latent."""
    return float(np.abs(one.latents - other.latents).max() / np.abs(other.latents).max())


def free_bytes() -> int:
    """Free memory of the GPU."""
    api = Cuda.open("trt").api
    _, free, _ = api.cudaMemGetInfo()
    return int(free)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_pictures_are_the_cpus(opened: Opened, reference: Pipeline, guidance_scale: float, count: int) -> None:
    settings = {**SETTINGS, "guidance_scale": guidance_scale}
    here = opened()([PROMPT] * count, **settings)
    there = reference([PROMPT] * count, **settings)
    assert difference(here, there) <= FP16_TOLERANCE
    other = reference(["a blue star"] * count, **{**settings, "seed": 4})
    assert difference(here, other) > 10 * FP16_TOLERANCE


def test_results_are_the_same_with_graphs_and_without(opened: Opened) -> None:
    with_graphs, without = opened(cuda_graphs=True), opened(cuda_graphs=False)
    for count in (1, 3, 1):
        one, two = with_graphs([PROMPT] * count, **SETTINGS), without([PROMPT] * count, **SETTINGS)
        # The same kernels on the same numbers, launched in another way.
        assert np.array_equal(one.latents, two.latents)


def test_the_fused_loop_is_the_plain_one(opened: Opened) -> None:
    fused, plain = opened()(PROMPT, **SETTINGS), opened(loop="plain")(PROMPT, **SETTINGS)
    assert difference(fused, plain) <= FP16_TOLERANCE


def test_a_picture_is_repeated_bit_by_bit(opened: Opened) -> None:
    pipeline = opened()
    assert np.array_equal(pipeline(PROMPT, **SETTINGS).latents, pipeline(PROMPT, **SETTINGS).latents)


def test_a_callback_sees_finite_latents_of_every_step(opened: Opened) -> None:
    seen: list[int] = []

    def watch(_: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> None:
        assert np.isfinite(values["latents"]).all()
        seen.append(step)

    pipeline = opened()
    watched = pipeline(PROMPT, callback_on_step_end=watch, **SETTINGS)
    assert seen == list(range(STEPS))
    assert np.array_equal(watched.latents, pipeline(PROMPT, **SETTINGS).latents)


def test_steps_are_timed_by_the_device(opened: Opened) -> None:
    result = opened()(PROMPT, **SETTINGS)
    assert len(result.timings.steps) == STEPS
    assert 0 < sum(result.timings.steps) <= result.timings.unet


def test_what_is_not_finite_names_its_step(opened: Opened) -> None:
    def spoil(_: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * np.float32(1e30)}

    with pytest.raises(NumericError, match=r"denoise_step gave .* at step"):
        opened()(PROMPT, callback_on_step_end=spoil, **SETTINGS)


def test_memory_is_what_is_reported_and_comes_back(opened: Opened) -> None:
    before = free_bytes()
    pipeline = opened()
    pipeline([PROMPT] * 4, **SETTINGS)
    held = pipeline.device_bytes
    assert held["weights"] > 0
    assert held["activations"] > 0
    assert before - free_bytes() <= held["total"] + DRIVER_BYTES
    pipeline.close()
    assert before - free_bytes() <= DRIVER_BYTES


def test_a_batch_outside_the_profile_is_refused(plans: EngineSet) -> None:
    with open_engine(plans, "vae_decoder") as decoder:
        model = plans.manifest.model
        shape = (9, model.latent_channels, model.latent_size, model.latent_size)
        with pytest.raises(UsageError, match="was built for batches of 1 to 4; got 9"):
            decoder.run(latent_sample=np.zeros(shape, decoder.spec.inputs[0].dtype))


def test_out_of_memory_is_named_and_the_next_run_is_well(plans: EngineSet) -> None:
    cuda = Cuda.open("trt")
    taken = []
    size_bytes = 1 << 30
    while size_bytes >= 1 << 20:
        try:
            taken.append(cuda.allocate(size_bytes))
        except ResourceError:
            size_bytes //= 2
    try:
        with pytest.raises(ResourceError, match="out of GPU memory") as caught:
            Pipeline(plans)([PROMPT] * 4, **SETTINGS)
        assert "--recipe sd-v1-latency" in caught.value.hint
    finally:
        for buffer in taken:
            cuda.free(buffer)
    with Pipeline(plans) as pipeline:
        assert np.isfinite(pipeline(PROMPT, **SETTINGS).latents).all()
