"""Arguments from Python: a wrong type is a UsageError that names the argument; records hold plain numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrt import Pipeline
from sdrt.arguments import as_real, as_whole, items, shown, whole
from sdrt.errors import UsageError
from sdrt.runtime.picture_record import PictureRecord, record_json
from sdrt.sampling.latents import unit_noise
from tests.helpers.fixtures import Sets


@pytest.fixture(scope="module")
def pipe(hand_sets: Sets) -> Iterator[Pipeline]:
    with Pipeline(hand_sets(), threads=np.int64(1)) as opened:  # type: ignore[arg-type]
        yield opened


def test_numbers() -> None:
    assert whole("n", np.float32(5), 0, 5) == 5
    assert [as_whole(value) for value in (True, np.True_, "5", None, 5j, 5.5, b"5", [5], np.array([5]))] == [None] * 9
    assert [as_real(value) for value in (True, np.True_, "5", None, 5j, [5], np.array([5.0]), 10**400)] == [None] * 8
    assert as_real(np.float32(7.5)) == 7.5
    assert type(as_real(np.float64(7.5))) is float
    assert type(as_whole(np.int64(7))) is int


def test_values_are_shown_as_python_writes_them() -> None:
    assert [shown(value) for value in (np.int64(7), np.float32(0.5), np.array(7.0), "x")] == ["7", "0.5", "7", "'x'"]
    assert shown(10**5000) == "a int"
    assert len(shown("x" * 500)) == 40


def test_collections() -> None:
    assert items("n", (value for value in (1, 2)), "numbers") == [1, 2]
    for none in ("12", b"12", {1: 2}, {1, 2}, 5, None, np.array(5)):
        with pytest.raises(UsageError, match=r"n is .*; it must be numbers"):
            items("n", none, "numbers")


def test_a_call_in_numbers_of_numpy_is_the_same_call(pipe: Pipeline) -> None:
    plain = pipe(["a", "b"], seed=5, num_inference_steps=2, guidance_scale=7.5, guidance_interval=(0.5, 20))
    prompts: Any = np.array(["a", "b"])
    numbers: dict[str, Any] = {
        "seed": np.int64(5),
        "num_inference_steps": np.float64(2),
        "guidance_scale": np.float32(7.5),
        "guidance_interval": np.array([0.5, 20]),
        "num_images_per_prompt": np.uint8(1),
    }
    given = pipe(prompts, **numbers)
    assert [json.dumps(record) for record in given.records] == [json.dumps(record) for record in plain.records]
    assert [picture.tobytes() for picture in given.images] == [picture.tobytes() for picture in plain.images]
    assert PictureRecord.model_validate_json(record_json(given.records[0])).threads == 1
    assert type(pipe.threads) is int


class Uncallable:
    pass


WRONG: dict[str, list[Any]] = {
    "prompt": [None, 5, b"a", {"a": 1}],
    "negative_prompt": [3, b"a"],
    "image": [3, "a.png", Path("a.png"), np.zeros((4, 4, 3), np.uint8), b"", False],
    "strength": ["0.5", True, None],
    "start_step": ["1", True, 1.5],
    "lms_start": [None, 5],
    "num_inference_steps": ["2", None, True, np.True_, 2.5, [2]],
    "guidance_scale": ["7", True, np.False_, [7.5]],
    "guidance_interval": [5, "05", [1], [1, True]],
    "deepcache": ["2", True, 1],
    "num_images_per_prompt": ["1", None, True],
    "seed": ["abc", "5", True, 5.5, {5}, object()],
    "latents": [3, "a.npy", [[0.0]], np.zeros((1, 4, 64, 64), int), np.zeros((1, 4, 64, 64), bool), np.zeros(5)],
    "callback_on_step_end": [3, "print", Uncallable(), {}],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_an_error_that_names_the_argument(name: str, pipe: Pipeline) -> None:
    for value in WRONG[name]:
        arguments = {"prompt": "a", "num_inference_steps": 2, name: value}
        if name == "strength" and value is None:
            continue
        with pytest.raises(UsageError) as caught:
            pipe(arguments.pop("prompt"), **arguments)
        assert caught.value.message.startswith(f"{name} ")
        assert len(caught.value.message) < 200
        assert caught.value.hint


@pytest.mark.parametrize("given", [np.zeros((1, 4, 64, 64)), 5, ["latents"], "latents"])
def test_what_a_callback_gives_back_is_a_mapping(given: Any, pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"callback_on_step_end returned .*; it must be a mapping, or None"):
        pipe("a", num_inference_steps=2, callback_on_step_end=lambda *_: given)


@pytest.mark.parametrize("latents", [None, 5, "x", [0.0], np.zeros((4, 8, 8)), np.zeros((1, 4, 8, 8), int)])
def test_what_is_decoded_are_latents(latents: Any, pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="latents "):
        pipe.decode(latents)
    whole: Any = unit_noise([1, 2], (4, 8, 8)).astype(np.float64)
    assert len(pipe.decode(whole)) == 2


LOADING: dict[str, list[Any]] = {
    "checkpoint": [5, b"demo", ["demo"]],
    "revision": [5, b"main"],
    "variant": [5, b"ema"],
    "bundle": [5, b"bundle"],
    "engines": [5, True],
    "trust": [5],
    "backend": [5, None],
    "precision": [32, "fp64"],
    "store": [5],
    "build": ["no", 0, None],
    "threads": ["2", 0, -1, 1.5, True, np.True_],
    "loop": [5, "fast", None],
    "cuda_graphs": ["no", 1],
    "keep_loaded": ["no", None],
    "provider": [5, "rocm"],
    "deepcache": [2, "yes", None],
    "token_merging": ["0.5", True, 2, np.float32(0.9)],
}


@pytest.mark.parametrize("name", LOADING)
def test_a_wrong_type_is_refused_before_anything_is_loaded(name: str) -> None:
    for value in LOADING[name]:
        with pytest.raises(UsageError) as caught:
            Pipeline.load(**{name: value})
        assert caught.value.message.startswith(f"{name} is ")
        assert caught.value.hint


def test_every_argument_of_load_is_checked() -> None:
    arguments = set(Pipeline.load.__annotations__) - {"progress", "return"}
    assert arguments == set(LOADING)


def test_an_engine_set_is_opened_by_numbers_and_flags_of_numpy(hand_sets: Sets) -> None:
    opened: Any = hand_sets()
    flags: dict[str, Any] = {"keep_loaded": np.True_, "deepcache": np.False_, "build": np.bool_(1), "threads": 1.0}
    with Pipeline.load(engines=opened.path, trust=opened.digest, **flags) as pipe:
        assert (pipe.threads, pipe.engines.digest) == (1, opened.digest)
