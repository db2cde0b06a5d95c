"""DeepCache at run time: which steps are whole, whose features the others take, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import COMPONENTS, DEEPCACHE, ComponentName
from sdrt.errors import EngineError, UsageError
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.deepcache import CachedUnet
from sdrt.runtime.denoise import denoise
from sdrt.runtime.picture_queue import run_queue
from sdrt.runtime.picture_record import PictureRecord, record_json
from sdrt.runtime.prompt_file import Line
from sdrt.runtime.request import make_request
from sdrt.runtime.result import Timings
from tests.doubles.engines import engine_component, tensor, unet_inputs
from tests.helpers.fixtures import Sets
from tests.helpers.latents import conditioning, difference, noise, sd_v1_schedule
from tests.models.tiny_bundle import HIDDEN_SIZE, LATENTS, MAX_TOKENS

Array = npt.NDArray[Any]

STEPS = 8
HELD: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "vae_decoder", *DEEPCACHE)
#: Relative to the largest latent: libraries fuse differently around the cut, and eight guided steps amplify that
#: rounding. Features of the step before change the latents by more than 0.01.
ROUNDING = 1e-4


class FormulaPass(Engine):
    """One pass by a formula: the output shows the timestep whose deep features it used, row by row."""

    def __init__(self, name: ComponentName) -> None:
        features, output = tensor("deep_features", 2), tensor("out_sample", *LATENTS)
        inputs = unet_inputs()
        if name == "deepcache_whole":
            spec = engine_component(inputs, [output, features])
        else:
            spec = engine_component([*inputs, features], [output])
        super().__init__(name, spec)

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        hidden = feeds["encoder_hidden_states"].mean(axis=(1, 2))
        deep = feeds.get("deep_features", np.stack([feeds["timestep"], hidden], axis=1))
        output = feeds["sample"] * 0.1 + deep[:, :1, None, None] / 1000 + deep[:, 1:, None, None]
        assert "deep_features" not in feeds or np.allclose(deep[:, 1], hidden), "another row's features"
        outputs: dict[str, Array] = {"out_sample": output.astype(np.float32)}
        return outputs | ({"deep_features": deep} if self.name == "deepcache_whole" else {})

    def release(self) -> None:
        pass


def cached(interval: int) -> CachedUnet:
    return CachedUnet(FormulaPass("deepcache_whole"), FormulaPass("deepcache_shallow"), interval)


def run(unet: CachedUnet, *, count: int = 2, interval: tuple[float, float] | None = None) -> Array:
    asked = replace(conditioning(count), guidance_interval=interval)
    return denoise(unet, sd_v1_schedule(STEPS), noise(sd_v1_schedule(STEPS), count), asked)


@pytest.mark.parametrize(
    ("interval", "whole"), [(1, list(range(STEPS))), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (5, [0, 5]), (STEPS, [0])]
)
def test_every_nth_step_is_whole(interval: int, whole: list[int]) -> None:
    unet = cached(interval)
    run(unet)
    assert unet.whole_steps == whole
    assert len(unet.seconds) == STEPS


def test_where_guidance_begins_the_step_is_whole() -> None:
    sigmas = sd_v1_schedule(STEPS).sigmas
    unet = cached(3)
    # Guided are steps 2 to 4: at 2 the negative half has no features yet, at 5 the prompts' half continues alone.
    run(unet, interval=(float(sigmas[5]), float(sigmas[2])))
    assert unet.whole_steps == [0, 2, 3, 6]


def test_rows_have_features_of_their_own() -> None:
    """Check each row's features against its hidden states; the control passes them on reversed."""
    unet = cached(2)
    run(unet, count=3, interval=(1.0, 100.0))
    feeds = {"sample": np.zeros((2, *LATENTS), np.float32), "timestep": np.ones(2, np.float32)}
    states = np.arange(2, dtype=np.float32)[:, None, None] * np.ones((2, MAX_TOKENS, HIDDEN_SIZE), np.float32)
    unet = cached(2)
    unet.run(**feeds, encoder_hidden_states=states)
    with pytest.raises(AssertionError, match="another row's features"):
        unet.run(**feeds, encoder_hidden_states=states[::-1])


def test_all_steps_whole_are_the_ordinary_loop() -> None:
    class Plain(FormulaPass):
        def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
            return {
                "out_sample": super().execute(feeds)["out_sample"],
                "deep_features": np.zeros((len(feeds["sample"]), 2)),
            }

    np.testing.assert_array_equal(run(cached(1)), run(Plain("deepcache_whole")))  # type: ignore[arg-type]
    assert not np.array_equal(run(cached(1)), run(cached(2)))


def draw(pipe: Pipeline, **asked: Any) -> Any:
    return pipe("a red circle", **{"seed": 0, "num_inference_steps": STEPS, **asked})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_over_engines(hand_sets: Sets, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = (*COMPONENTS, *DEEPCACHE)
    with Pipeline(hand_sets(backend, components=both)) as plain, Pipeline(hand_sets(backend, components=HELD)) as pipe:
        expected = draw(plain).latents
        # Without DeepCache the whole pass is the UNet.
        np.testing.assert_array_equal(draw(pipe).latents, expected)
        # Every step whole, which requests cannot choose.
        monkeypatch.setattr("sdrt.pipeline.CachedUnet", lambda whole, shallow, _: CachedUnet(whole, shallow, 1))
        np.testing.assert_array_equal(draw(pipe, deepcache=2).latents, expected)
        monkeypatch.undo()
        # A complete set can do both.
        np.testing.assert_array_equal(draw(plain, deepcache=2).latents, draw(pipe, deepcache=2).latents)
        assert difference(draw(pipe, deepcache=2).latents, expected) > 100 * ROUNDING


def test_features_of_the_same_step_change_nothing(hand_sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run both passes at each step and use the shallow one's output: it equals the whole loop but for rounding."""

    def run_both(unet: CachedUnet, **feeds: Array) -> dict[str, Array]:
        features = unet._whole.run(**feeds)["deep_features"]
        unet.seconds.append(0.0)
        return unet._shallow.run(**feeds, deep_features=features)

    with Pipeline(hand_sets(components=HELD)) as pipe:
        expected = draw(pipe).latents
        monkeypatch.setattr(CachedUnet, "run", run_both)
        assert difference(draw(pipe, deepcache=2).latents, expected) < ROUNDING


def test_pictures_that_need_more_than_one_batch(hand_sets: Sets) -> None:
    with Pipeline(hand_sets(components=HELD), keep_loaded=False) as pipe:
        together = draw(pipe, deepcache=3, num_images_per_prompt=6)
        assert pipe._session._opened == {}
        assert len(together.timings.steps) == 2 * STEPS
        for index in (0, 5):
            alone = draw(pipe, deepcache=3, seed=index)
            assert difference(together.latents[index : index + 1], alone.latents) < ROUNDING
        assert difference(together.latents[:1], alone.latents) > 100 * ROUNDING


def test_from_a_picture_the_first_step_that_runs_is_whole(hand_sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[CachedUnet] = []

    def keep(*arguments: Any) -> CachedUnet:
        seen.append(CachedUnet(*arguments))
        return seen[-1]

    monkeypatch.setattr("sdrt.pipeline.CachedUnet", keep)
    with Pipeline(hand_sets(components=HELD)) as pipe:
        draw(pipe, deepcache=3, image=Image.new("RGB", (16, 16), (200, 40, 40)), strength=0.5)
    assert [unet.whole_steps for unet in seen] == [[0, 3]]
    assert [len(unet.seconds) for unet in seen] == [STEPS // 2]


def test_callbacks_see_every_step_and_can_stop(hand_sets: Sets) -> None:
    seen: list[int] = []

    def watch(pipe: Pipeline, step: int, _timestep: float, _tensors: dict[str, Any]) -> None:
        seen.append(step)
        if step == 4:
            pipe.stop()

    with Pipeline(hand_sets(components=HELD)) as pipe:
        result = draw(pipe, deepcache=3, callback_on_step_end=watch)
    assert (seen, result.stopped_after) == ([0, 1, 2, 3, 4], 5)


def test_records_and_queues_carry_it(hand_sets: Sets) -> None:
    with Pipeline(hand_sets(components=HELD)) as pipe:
        result = draw(pipe, deepcache=3)
        record = PictureRecord.model_validate_json(record_json(result.records[0]))
        assert (record.deepcache, record.loop) == (3, "plain")
        asked: dict[str, Any] = {"seed": 0, "num_inference_steps": STEPS, "deepcache": 3}
        lines = [Line(number, make_request(prompt, **asked)) for number, prompt in enumerate(("a red circle", "b"), 1)]
        (first, _) = run_queue(pipe, lines, Timings())
        assert first.record is not None
        assert first.record["deepcache"] == 3
        assert first.image is not None
        # Another batch may move a last bit, and with it a level of 256.
        assert np.abs(np.asarray(first.image, int) - np.asarray(result.images[0], int)).max() <= 1


def test_engines_without_the_passes_are_named(hand_sets: Sets) -> None:
    with Pipeline(hand_sets()) as pipe:
        with pytest.raises(EngineError, match="holds no deepcache_whole, only text_encoder") as caught:
            draw(pipe, deepcache=3)
        assert "--deepcache" in caught.value.hint


@pytest.mark.parametrize("value", [1, 0, -3, 1001, 2.5, True, "3"])
def test_what_is_no_interval_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"deepcache is .*; it must be a whole number, 2 to 1000"):
        make_request("a", deepcache=value)


def test_a_fixed_batch_fixes_both_passes(hand_sets: Sets) -> None:
    one = BatchRange(min=1, opt=1, max=1)
    engines = hand_sets(components=HELD, batch=one)
    for name in DEEPCACHE:
        assert engines.component(name).batch == BatchRange(min=2, opt=2, max=2)
    with Pipeline(engines) as pipe:
        assert draw(pipe, deepcache=2).latents.shape == (1, *LATENTS)
