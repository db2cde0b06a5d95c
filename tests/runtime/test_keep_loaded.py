"""Engines release their memory when done, unless they are kept loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.artefacts.manifest import COMPONENTS
from sdrt.errors import EngineError
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.preview import Preview
from tests.helpers.fixtures import Sets

Array = npt.NDArray[Any]

PICTURE = Image.new("RGB", (16, 16), (200, 40, 40))
SETTINGS: dict[str, Any] = {"seed": 0, "num_inference_steps": 2, "num_images_per_prompt": 5, "image": PICTURE}


@pytest.fixture
def open_now(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Record the engines that are open during each run, each state once."""
    opened: set[str] = set()
    states: list[set[str]] = []
    start, close, run = Engine.__init__, Engine.close, Engine.run

    def starting(engine: Engine, name: Any, spec: Any) -> None:
        opened.add(name)
        start(engine, name, spec)

    def closing(engine: Engine) -> None:
        opened.discard(engine.name)
        close(engine)

    def running(engine: Engine, **feeds: Array) -> dict[str, Array]:
        if not states or states[-1] != opened:
            states.append(set(opened))
        return run(engine, **feeds)

    monkeypatch.setattr(Engine, "__init__", starting)
    monkeypatch.setattr(Engine, "close", closing)
    monkeypatch.setattr(Engine, "run", running)
    return states


def test_one_engine_is_open_at_a_time(hand_sets: Sets, open_now: list[set[str]]) -> None:
    with Pipeline(hand_sets(), keep_loaded=False) as pipe:
        pipe("a red circle", **SETTINGS)
        # Five pictures in two groups: each engine is done with both before the next is opened.
        assert open_now == [{"vae_encoder"}, {"text_encoder"}, {"unet"}, {"vae_decoder"}]
        assert pipe._session._opened == {}


def test_the_denoise_step_is_let_go_of_too(hand_sets: Sets, open_now: list[set[str]]) -> None:
    with Pipeline(hand_sets(components=(*COMPONENTS, "denoise_step")), keep_loaded=False) as pipe:
        pipe("a red circle", **SETTINGS | {"image": None})
    assert open_now == [{"text_encoder"}, {"denoise_step"}, {"vae_decoder"}]


def test_engines_stay_unless_told_otherwise(hand_sets: Sets, open_now: list[set[str]]) -> None:
    with Pipeline(hand_sets()) as pipe:
        pipe("a red circle", **SETTINGS)
    assert open_now == [{"text_encoder", "unet", "vae_decoder", "vae_encoder"}]


def test_pictures_are_the_same_either_way_and_again(hand_sets: Sets) -> None:
    with Pipeline(hand_sets()) as keeping, Pipeline(hand_sets(), keep_loaded=False) as pipe:
        expected = keeping("a red circle", **SETTINGS)
        for _ in range(2):
            result = pipe("a red circle", **SETTINGS)
            assert (result.latents == expected.latents).all()
            assert result.records == expected.records


def test_what_a_run_opens_is_its_load(hand_sets: Sets) -> None:
    with Pipeline(hand_sets(), keep_loaded=False) as pipe:
        for _ in range(2):
            timings = pipe("a red circle", **SETTINGS).timings
            parts = (timings.load, timings.vae_encoder, timings.text_encoder, timings.unet, timings.vae_decoder)
            assert all(part > 0 for part in parts)
            assert sum(parts) <= timings.total
            assert pipe.load_s == 0


def test_a_missing_component_is_found_before_anything_runs(hand_sets: Sets) -> None:
    engines = hand_sets(components=("text_encoder", "unet"))
    with pytest.raises(EngineError, match="holds no vae_decoder"):
        Pipeline(engines, keep_loaded=False)


def test_a_preview_lets_go_of_the_decoder(hand_sets: Sets, open_now: list[set[str]]) -> None:
    with Pipeline(hand_sets(), keep_loaded=False) as pipe:
        settings = SETTINGS | {"image": None, "num_images_per_prompt": 1, "num_inference_steps": 6}
        pipe("a red circle", callback_on_step_end=Preview(lambda *_: None), **settings)
    both = {"unet", "vae_decoder"}
    assert open_now == [{"text_encoder"}, {"unet"}, both, {"unet"}, both, {"unet"}, {"vae_decoder"}]


def test_decoding_opens_the_decoder_again(hand_sets: Sets) -> None:
    with Pipeline(hand_sets(), keep_loaded=False) as pipe:
        result = pipe("a red circle", **SETTINGS)
        (first, *_) = pipe.decode(result.latents)
        assert first.tobytes() == result.images[0].tobytes()
        assert np.asarray(first).std() > 0
