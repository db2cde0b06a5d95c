"""The pipeline on the tiny checkpoint's engines: seeds, batches, guidance, callbacks, latents, records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrt import Pipeline, Result
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Precision
from sdrt.artefacts.store import Store
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.machine.cpu import usable_cpus
from sdrt.progress import silent
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.batches import PICTURES_AT_ONCE
from sdrt.runtime.picture_record import PictureRecord, record_json
from sdrt.runtime.result import Timings
from sdrt.sampling.latents import unit_noise
from tests.helpers.fixtures import Engines
from tests.helpers.latents import difference

Array = npt.NDArray[Any]

STEPS = 3
#: Relative to the largest latent. Another batch size gives another order of sums in the products of each of a few
#: dozen layers; three steps with guidance 7.5 amplify that.
BATCH_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipe(tiny_engines: Engines) -> Iterator[Pipeline]:
    with Pipeline(tiny_engines("onnxruntime", "fp32")) as opened:
        yield opened


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """List component and rows of every run of an engine."""
    seen: list[tuple[str, int]] = []
    run = Engine.run

    def spy(engine: Engine, **feeds: Array) -> dict[str, Array]:
        seen.append((engine.name, len(next(iter(feeds.values())))))
        return run(engine, **feeds)

    monkeypatch.setattr(Engine, "run", spy)
    return seen


def draw(pipe: Pipeline, prompt: Any = "a red circle", **arguments: Any) -> Result:
    return pipe(prompt, **{"num_inference_steps": STEPS, "seed": 0, **arguments})


def pixels(result: Result) -> list[bytes]:
    return [picture.tobytes() for picture in result.images]


def test_a_call_gives_a_picture(pipe: Pipeline) -> None:
    result = draw(pipe)
    (picture,) = result.images
    assert (picture.size, picture.mode) == ((512, 512), "RGB")
    # Unlike a failed decoder's picture, it has contrast.
    assert np.asarray(picture).std() > 10
    assert result.latents.shape == (1, 4, 64, 64)
    assert result.latents.dtype == np.float32


def test_folders_are_named_by_text_or_by_path(tiny_bundle: Bundle, store: Store) -> None:
    named = Pipeline.load(bundle=str(tiny_bundle.path), backend="onnxruntime", precision="fp32", store=str(store.root))
    with (
        named as pipe,
        Pipeline.load(bundle=tiny_bundle.path, backend="onnxruntime", precision="fp32", store=store.root) as other,
    ):
        assert pipe.engines == other.engines
    with pytest.raises(BundleError, match="nowhere"):
        Pipeline.load(bundle="nowhere", backend="onnxruntime", store=str(store.root))


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32")])
def test_the_same_call_gives_the_same_bytes(tiny_engines: Engines, backend: str, precision: Precision) -> None:
    with Pipeline(tiny_engines(backend, precision)) as pipe:
        first, _, again = draw(pipe), draw(pipe, "something else", seed=9, num_images_per_prompt=2), draw(pipe)
    with Pipeline(tiny_engines(backend, precision)) as reopened:
        later = draw(reopened)
    assert (first.latents == again.latents).all()
    assert (first.latents == later.latents).all()
    assert pixels(first) == pixels(again) == pixels(later)
    assert first.records == again.records


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_picture_depends_on_its_own_seed_only(tiny_engines: Engines, backend: str) -> None:
    with Pipeline(tiny_engines(backend, "fp32")) as pipe:
        together = draw(pipe, seed=5, num_images_per_prompt=3)
        alone = [draw(pipe, seed=seed) for seed in (5, 6, 7)]
    assert [picture.seed for picture in together.request.pictures] == [5, 6, 7]
    for row, single in zip(together.latents, alone, strict=True):
        assert difference(row[np.newaxis], single.latents) < BATCH_TOLERANCE
    # The control: its neighbour's picture is another one.
    assert difference(together.latents[:1], alone[1].latents) > 1000 * BATCH_TOLERANCE


def test_seed_0_is_a_seed_like_any_other(pipe: Pipeline) -> None:
    assert (draw(pipe, seed=0).latents == draw(pipe, seed=0).latents).all()
    assert difference(draw(pipe, seed=0).latents, draw(pipe, seed=1).latents) > 0.1


def test_a_drawn_seed_is_reported_and_repeats(pipe: Pipeline) -> None:
    drawn = draw(pipe, seed=None)
    again = draw(pipe, seed=drawn.request.pictures[0].seed)
    assert (drawn.latents == again.latents).all()


def test_lists_of_prompts_are_single_prompts(pipe: Pipeline) -> None:
    prompts, negatives = ["a red circle", "a blue square"], ["dark", "bright"]
    together = draw(pipe, prompts, negative_prompt=negatives, seed=[3, 4])
    assert len(together.images) == 2
    for index, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        single = draw(pipe, prompt, negative_prompt=negative, seed=3 + index)
        assert difference(together.latents[index][np.newaxis], single.latents) < BATCH_TOLERANCE
    other = draw(pipe, "a blue square", negative_prompt="bright", seed=3)
    assert difference(together.latents[:1], other.latents) > 10 * BATCH_TOLERANCE


def test_more_pictures_than_go_at_once(pipe: Pipeline, batches: list[tuple[str, int]]) -> None:
    count = PICTURES_AT_ONCE + 1
    result = draw(pipe, num_images_per_prompt=count, num_inference_steps=1)
    assert len(result.images) == len(result.latents) == len(result.records) == len(result.truncated) == count
    assert [rows for name, rows in batches if name == "unet"] == [2 * PICTURES_AT_ONCE, 2]
    assert [record["seed"] for record in result.records] == list(range(count))
    last = result.records[-1]
    assert (last["batch_index"], [seed for _, _, seed in last["batch"]]) == (0, [count - 1])


def test_steps_outside_the_guidance_interval_run_one_row(pipe: Pipeline, batches: list[tuple[str, int]]) -> None:
    whole = draw(pipe)
    del batches[:]
    # Of three steps the middle one, at sigma 1.6, is guided.
    result = draw(pipe, guidance_interval=(0.5, 5))
    assert [rows for name, rows in batches if name == "unet"] == [1, 2, 1]
    assert PictureRecord.model_validate_json(record_json(result.records[0])).guidance_interval == (0.5, 5.0)
    assert difference(result.latents, whole.latents) > 0.01
    # Pictures beside it do not matter.
    beside = draw(pipe, ["a red circle", "a blue square"], guidance_interval=(0.5, 5))
    assert difference(beside.latents[:1], result.latents) < BATCH_TOLERANCE


def test_guidance_off_runs_a_single_batch_bitwise(pipe: Pipeline, batches: list[tuple[str, int]]) -> None:
    plain = draw(pipe, guidance_scale=1.0)
    assert {rows for name, rows in batches if name == "unet"} == {1}
    assert [name for name, _ in batches].count("text_encoder") == 1
    for scale in (1, 0.0, -1, -7.5):
        other = draw(pipe, guidance_scale=scale, negative_prompt="unused")
        assert (other.latents == plain.latents).all()
        assert pixels(other) == pixels(plain)
    guided = draw(pipe, guidance_scale=1.5)
    assert difference(guided.latents, plain.latents) > BATCH_TOLERANCE
    assert {rows for name, rows in batches if name == "unet"} == {1, 2}


def test_guidance_just_above_1_is_close_to_guidance_off(pipe: Pipeline) -> None:
    plain, guided = draw(pipe, guidance_scale=1), draw(pipe, guidance_scale=1 + 1e-6)
    # The formula is continuous; the rest is the effect of the batch size.
    assert difference(guided.latents, plain.latents) < BATCH_TOLERANCE


def test_each_distinct_text_is_encoded_once(pipe: Pipeline, batches: list[tuple[str, int]]) -> None:
    draw(pipe, ["a", "a", "b"], negative_prompt="b", num_inference_steps=1)
    assert batches.count(("text_encoder", 1)) == 2


def test_a_callback_sees_every_step(pipe: Pipeline) -> None:
    seen: list[tuple[int, float, Array]] = []

    def watch(given: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> None:
        assert given is pipe
        seen.append((step, timestep, values["latents"].copy()))

    result = draw(pipe, callback_on_step_end=watch)
    assert [step for step, _, _ in seen] == list(range(STEPS))
    assert [timestep for _, timestep, _ in seen] == [999.0, 499.5, 0.0]
    assert (seen[-1][2] == result.latents).all()
    assert (draw(pipe).latents == result.latents).all()


def test_a_callback_may_change_the_latents(pipe: Pipeline) -> None:
    def replace_last(_: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": np.zeros_like(values["latents"])} if step == STEPS - 1 else {}

    assert (draw(pipe, callback_on_step_end=replace_last).latents == 0).all()


@pytest.mark.parametrize("bad", [np.zeros((1, 4, 32, 32)), np.full((1, 4, 64, 64), np.nan), "latents"])
def test_latents_of_a_callback_are_checked(pipe: Pipeline, bad: Any) -> None:
    with pytest.raises(UsageError, match="latents"):
        draw(pipe, callback_on_step_end=lambda *_: {"latents": bad})


def test_an_error_in_a_callback_comes_through(pipe: Pipeline) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=fail)
    draw(pipe, num_inference_steps=1)


def test_latents_given_take_the_place_of_the_seed(pipe: Pipeline) -> None:
    from_seed = draw(pipe, seed=11)
    given = draw(pipe, seed=0, latents=unit_noise([11]))
    assert (given.latents == from_seed.latents).all()
    assert [record["latents_given"] for record in (from_seed.records[0], given.records[0])] == [False, True]
    with pytest.raises(UsageError, match="latents have shape"):
        draw(pipe, latents=unit_noise([11, 12]))


def test_final_latents_decode_to_the_picture(pipe: Pipeline) -> None:
    result = draw(pipe)
    (again,) = pipe.decode(result.latents)
    assert again.tobytes() == pixels(result)[0]


def test_words_that_do_not_fit_are_reported(pipe: Pipeline) -> None:
    long = " ".join(["circle"] * 80)
    result = draw(pipe, ["a red circle", long], num_inference_steps=1)
    assert result.truncated == ("", " ".join(["circle"] * 5))
    cut = draw(pipe, " ".join(["circle"] * 75), num_inference_steps=1)
    assert cut.truncated == ("",)
    assert difference(result.latents[1:], draw(pipe, long, seed=1, num_inference_steps=1).latents) < BATCH_TOLERANCE


def test_records_say_all_that_repeats_a_picture(pipe: Pipeline) -> None:
    result = draw(pipe, ["a", "b"], negative_prompt="c", seed=4, guidance_scale=3.5)
    batch = [["a", "c", 4], ["b", "c", 5]]
    for index, record in enumerate(result.records):
        PictureRecord.model_validate(record | {"batch": [tuple(row) for row in record["batch"]]})
        assert record | {"checkpoint": None} == {
            "prompt": "ab"[index],
            "negative_prompt": "c",
            "seed": 4 + index,
            "num_inference_steps": STEPS,
            "guidance_scale": 3.5,
            "guidance_interval": None,
            "deepcache": None,
            "token_merging": None,
            "scheduler": "LMS",
            "checkpoint": None,
            "backend": "onnxruntime",
            "precision": "fp32",
            "engines": pipe.engines.digest,
            "loop": "plain",
            "provider": "cpu",
            "cuda_graphs": None,
            "threads": usable_cpus(),
            "init_image": None,
            "start_step": None,
            "lms_start": None,
            "stopped_after": None,
            "size": [512, 512],
            "latents_given": False,
            "batch": batch,
            "batch_index": index,
        }
        assert record["checkpoint"]["name"] == "tiny"


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_make_no_picture(
    pipe: Pipeline, component: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Engine.run

    def broken(engine: Engine, **feeds: Array) -> dict[str, Array]:
        outputs = run(engine, **feeds)
        if engine.name == component:
            next(iter(outputs.values())).flat[7] = value
        return outputs

    monkeypatch.setattr(Engine, "run", broken)
    with pytest.raises(NumericError, match=f"^{component} gave"):
        draw(pipe, num_inference_steps=1)


def test_timings_add_up(pipe: Pipeline) -> None:
    timings = draw(pipe).timings
    assert len(timings.steps) == STEPS
    parts = (timings.load, timings.text_encoder, timings.unet, timings.vae_decoder)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= timings.total
    assert sum(timings.steps) <= timings.unet


def test_the_median_step_leaves_out_the_first() -> None:
    assert Timings(steps=[9.0, 1.0, 2.0, 3.0]).unet_s_per_step == 2.0
    assert Timings(steps=[9.0]).unet_s_per_step == 9.0
    assert Timings().unet_s_per_step == 0.0


def test_requests_are_checked_before_anything_runs(pipe: Pipeline, batches: list[tuple[str, int]]) -> None:
    for arguments in ({"num_inference_steps": 1001}, {"guidance_scale": float("nan")}, {"seed": -1}, {"prompt": 7}):
        with pytest.raises((UsageError, TypeError)):
            draw(pipe, **arguments)
    assert batches == []


def test_run_tells_progress(pipe: Pipeline) -> None:
    steps: list[int] = []

    class Counting(type(silent)):  # type: ignore[misc]
        def stage(self, name: str, total: int | None = None) -> Any:
            assert (name, total) == ("denoise", STEPS)
            return _Stage(steps.append)

    pipe.run(draw(pipe).request, progress=Counting())
    assert steps == [1] * STEPS


class _Stage:
    """A stage that passes every advance on."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        pass
