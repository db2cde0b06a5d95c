"""Plans on a real GPU: built for it, compared with the CPU, with CUDA graphs and without.

They need a machine with NVIDIA's driver, and tensorrt or tensorrt-rtx and cuda-bindings installed; nothing else. Only
they show what the doubles cannot: that the real libraries accept sdrt's calls in this order, that USER_MANAGED
memory goes together with capture and with TensorRT-RTX's own graphs, that a graph's numbers are those of its kernels
launched one by one, that kernels which TensorRT-RTX read from its cache give the numbers of those it compiled, fp16's
accuracy, times, the driver's own memory, and that CUDA gives back memory after a failed allocation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.arrays import Array
from sdrt.artefacts.engine_set import BackendName, EngineSet
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.artefacts.store import Store
from sdrt.compare.tolerances import load as load_tolerances
from sdrt.engines.build import build
from sdrt.engines.recipe import DEFAULT, load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.errors import NumericError, ResourceError, UsageError
from sdrt.libraries.cuda import Cuda
from sdrt.machine import nvidia
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.progress import Silent, silent
from sdrt.runtime.backends.opening import open_engine
from sdrt.runtime.backends.registry import available
from sdrt.runtime.backends.tensorrt_kernels import FOLDER
from sdrt.runtime.picture_record import read_record
from sdrt.runtime.text import Tokenizer
from tests.command_line import CommandLine
from tests.doubles.progress import Notes
from tests.helpers.latents import difference

pytestmark = pytest.mark.gpu

MODULES: dict[BackendName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: The installed backends; without one the tests fail and say so.
BACKENDS = [name for name, module in MODULES.items() if find_spec(module)] or ["tensorrt-rtx"]
STEPS = 10
#: Relative to the largest latent: fp16 keeps 11 bits of each layer's output, and ten guided steps amplify the loss.
FP16_TOLERANCE = 5e-2
#: The driver's free memory changes by its own allocations: pools, modules, the context's heap.
DRIVER_BYTES = 512 << 20
SETTINGS: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 3}
PROMPT = "a red circle on a white background"

Opened = Callable[..., Pipeline]


def build_plans(backend: BackendName, recipe_name: str, checkpoint: Path, store: Store) -> EngineSet:
    """Build the checkpoint's plans for this GPU; skip TensorRT-RTX where it does not support it."""
    gpu = nvidia.driver().gpus[0]
    if backend == "tensorrt-rtx" and gpu.architecture not in nvidia.RTX_ARCHITECTURES:
        pytest.skip(f"TensorRT-RTX does not run on {gpu.name} ({gpu.architecture})")
    available(backend)
    # Only TensorRT-RTX has targets: TensorRT compiles for this GPU.
    settings = [f"targets={gpu.architecture}"] if backend == "tensorrt-rtx" else []
    recipe = load_recipe(recipe_name, settings)
    bundle = open_bundle(Source(checkpoint=str(checkpoint)), store, precision="fp16")
    return build(bundle, BuildRequest(backend, recipe=recipe), store, silent)


@pytest.fixture(scope="module", params=BACKENDS)
def plans(request: pytest.FixtureRequest, tiny_path: Path, store: Store) -> EngineSet:
    """Build the tiny checkpoint's plans for this GPU, in the default recipe."""
    return build_plans(request.param, DEFAULT, tiny_path, store)


@pytest.fixture
def opened(plans: EngineSet) -> Iterator[Opened]:
    """Return a function that opens pipelines over the plans; close them at the end."""
    pipelines: list[Pipeline] = []

    def make(**options: Any) -> Pipeline:
        pipelines.append(Pipeline(plans, **options))
        return pipelines[-1]

    yield make
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture(scope="module")
def reference(tiny_path: Path, store: Store) -> Iterator[Pipeline]:
    """Open the same checkpoint in fp32 on the CPU."""
    engines = prepare(Source(checkpoint=str(tiny_path)), Choice("onnxruntime", "fp32"), store=store.root)
    with Pipeline(engines) as pipeline:
        yield pipeline


def free_bytes() -> int:
    """Return free memory of the GPU."""
    api = Cuda.open("trt").api
    _, free, _ = api.cudaMemGetInfo()
    return int(free)


def inputs(engines: EngineSet, name: ComponentName, batch: int, seed: int) -> dict[str, Array]:
    """Return inputs of a component: tokens of prompts, and noise that fp16 holds exactly."""
    rng = np.random.default_rng(seed)
    if name == "text_encoder":
        words = ["red", "green", "blue", "white"]
        prompts = [f"a {words[(seed + index) % len(words)]} circle" for index in range(batch)]
        tokens = Tokenizer.open(engines.tokenizer, engines.manifest.model.max_tokens).encode(prompts)
        return {"input_ids": tokens.input_ids}
    shapes = {
        spec.name: [batch if isinstance(axis, str) else axis for axis in spec.shape]
        for spec in engines.component(name).inputs
    }
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def outputs(engines: EngineSet, name: ComponentName, given: dict[str, Array]) -> Array:
    """Return the one output of a component, opened alone."""
    with open_engine(engines, name) as engine:
        feeds = {spec.name: given[spec.name].astype(spec.dtype) for spec in engine.spec.inputs}
        (output,) = engine.run(**feeds).values()
    return output.astype(np.float64)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_components_are_the_cpus_inside_the_profile_too(
    plans: EngineSet, reference: Pipeline, name: ComponentName, batch: int
) -> None:
    given = inputs(plans, name, batch, seed=1)
    expected = outputs(reference.engines, name, given)
    scale = np.linalg.norm(expected)
    row = load_tolerances().of(name, plans.manifest.backend, plans.component(name).precision)
    assert row is not None
    assert row.relative_l2 is not None
    assert np.linalg.norm(outputs(plans, name, given) - expected) <= row.relative_l2 * scale
    other = outputs(plans, name, inputs(plans, name, batch, seed=2))
    assert np.linalg.norm(other - expected) > row.relative_l2 * scale


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_pictures_are_the_cpus(opened: Opened, reference: Pipeline, guidance_scale: float, count: int) -> None:
    settings = {**SETTINGS, "guidance_scale": guidance_scale}
    here = opened()([PROMPT] * count, **settings)
    there = reference([PROMPT] * count, **settings)
    assert difference(here.latents, there.latents) <= FP16_TOLERANCE
    other = reference(["a blue star"] * count, **{**settings, "seed": 4})
    assert difference(here.latents, other.latents) > 10 * FP16_TOLERANCE


@pytest.mark.parametrize("loop", ["auto", "plain"])
def test_results_are_the_same_with_graphs_and_without(opened: Opened, loop: str) -> None:
    with_graphs, without = opened(loop=loop, cuda_graphs=True), opened(loop=loop, cuda_graphs=False)
    for count in (1, 3, 1):
        one, two = with_graphs([PROMPT] * count, **SETTINGS), without([PROMPT] * count, **SETTINGS)
        # The same kernels on the same numbers, launched differently.
        assert np.array_equal(one.latents, two.latents)
        assert two.records[0]["cuda_graphs"] is False
    assert one.records[0]["cuda_graphs"] is (loop == "auto" or with_graphs.engines.manifest.backend == "tensorrt-rtx")


def test_the_fused_loop_is_the_plain_one(opened: Opened) -> None:
    fused, plain = opened()(PROMPT, **SETTINGS), opened(loop="plain")(PROMPT, **SETTINGS)
    assert difference(fused.latents, plain.latents) <= FP16_TOLERANCE


def test_a_picture_is_repeated_bit_by_bit(opened: Opened) -> None:
    pipeline = opened()
    assert np.array_equal(pipeline(PROMPT, **SETTINGS).latents, pipeline(PROMPT, **SETTINGS).latents)


def test_a_picture_is_repeated_bit_by_bit_by_the_next_process(opened: Opened) -> None:
    """Check that a new session reads the compiled kernels from the cache."""
    first = opened()
    expected = first([PROMPT] * 2, **SETTINGS)
    first.close()
    kernels = sorted((first.engines.path / FOLDER).glob("denoise_step-*.cache"))
    assert len(kernels) == (1 if first.engines.manifest.backend == "tensorrt-rtx" else 0)
    assert np.array_equal(opened()([PROMPT] * 2, **SETTINGS).latents, expected.latents)


def test_a_session_after_another_does_not_compile_again(opened: Opened) -> None:
    notes = Notes()
    sealed = []
    for _ in range(2):
        pipeline = opened(progress=notes)
        pipeline(PROMPT, **SETTINGS)
        pipeline.close()
        sealed.append([path.read_bytes() for path in sorted((pipeline.engines.path / FOLDER).glob("*.cache"))])
    assert [note for note in notes.notes if "kernels" in note] == []
    assert sealed[0] == sealed[1], "what was read was compiled again, or is written in another order each time"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_throughput_recipe_fills_its_batch(backend: BackendName, tiny_path: Path, store: Store) -> None:
    engines = build_plans(backend, "sd-v1-throughput", tiny_path, store)
    with Pipeline(engines) as pipeline:
        one = pipeline(PROMPT, **SETTINGS)
        assert pipeline.pictures_at_once(one.request) == 8
        many = pipeline(PROMPT, num_images_per_prompt=17, **SETTINGS)
    assert len(many.images) == 17
    assert np.isfinite(many.latents).all()
    # Batch 8 runs other kernels than batch 1.
    assert np.abs(many.latents[:1] - one.latents).max() <= FP16_TOLERANCE * np.abs(one.latents).max()


def test_an_interrupted_run_leaves_a_pipeline_that_runs(opened: Opened) -> None:
    class Interrupt(Silent):
        @contextlib.contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
            def advance(_: int) -> None:
                raise KeyboardInterrupt

            yield advance

    pipeline = opened()
    expected = pipeline(PROMPT, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(expected.request, progress=Interrupt())
    assert np.array_equal(pipeline(PROMPT, **SETTINGS).latents, expected.latents)


@pytest.mark.parametrize("switch", ["--cuda-graphs", "--no-cuda-graphs"])
def test_the_command_says_how_it_ran_and_repeats_it(
    plans: EngineSet, store: Store, sdrt: CommandLine, tmp_path: Path, switch: str
) -> None:
    words = ("--engines", plans.path, "--store", store.root, "--json")
    draw = ("--prompt", PROMPT, "--steps", str(STEPS), "--seed", "3", "--out", tmp_path / "a.png")
    facts = sdrt("denoise", *words, *draw, switch).json
    ran = {"loop": "fused", "provider": None, "cuda_graphs": switch == "--cuda-graphs"}
    assert {name: facts[name] for name in ran} == ran
    assert set(facts["device_bytes"]) >= {"weights", "activations", "latents", "history", "total"}
    record = read_record(tmp_path / "a.png")
    assert {name: record[name] for name in ran} == ran
    assert sdrt("denoise", *words, "--from", tmp_path / "a.png", "--out", tmp_path / "b.png").code == 0
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as two:
        assert one.tobytes() == two.tobytes()


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
    assert held["history"] == 4 * held["latents"] > 0
    assert before - free_bytes() <= held["total"] + DRIVER_BYTES
    pipeline.close()
    assert before - free_bytes() <= DRIVER_BYTES


def test_a_batch_outside_the_profile_is_refused(plans: EngineSet) -> None:
    with open_engine(plans, "vae_decoder") as decoder:
        model = plans.manifest.model
        shape = (9, model.latent_channels, model.latent_size, model.latent_size)
        with pytest.raises(UsageError, match="was built for batches of 1 to 4; got 9"):
            decoder.run(latent_sample=np.zeros(shape, decoder.spec.inputs[0].dtype))


def test_out_of_memory_is_named(plans: EngineSet) -> None:
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
