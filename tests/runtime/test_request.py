"""Requests: laid out picture by picture, and refused with the argument and its range before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdrt.errors import UsageError
from sdrt.runtime.request import (
    DRAWN_SEEDS,
    MAX_GUIDANCE_SCALE,
    MAX_PICTURES,
    MAX_SEED,
    MAX_STEPS,
    PROMPT_LIMIT_CHARACTERS,
    Picture,
    Request,
    make_request,
)


def test_one_prompt_is_one_picture() -> None:
    request = make_request("a cat", seed=3)
    assert request == Request((Picture("a cat", "", 3),), 50, 7.5, guidance_left_open=True)
    assert make_request("a cat", seed=3, guidance_scale=7.5) == Request((Picture("a cat", "", 3),), 50, 7.5)


def test_a_checkpoint_decides_what_was_left_open_and_nothing_else() -> None:
    assert make_request("a cat", seed=3).settled(4.0) == make_request("a cat", seed=3, guidance_scale=4.0)
    assert make_request("a cat", seed=3, guidance_scale=7.5).settled(4.0).guidance_scale == 7.5


def test_pictures_of_one_prompt_have_rising_seeds() -> None:
    pictures = make_request("a cat", "a dog", seed=5, num_images_per_prompt=3).pictures
    assert pictures == tuple(Picture("a cat", "a dog", seed) for seed in (5, 6, 7))


def test_several_prompts_come_in_diffusers_order() -> None:
    pictures = make_request(["a", "b"], ["x", "y"], seed=0, num_images_per_prompt=2).pictures
    assert [(p.prompt, p.negative_prompt, p.seed) for p in pictures] == [
        ("a", "x", 0),
        ("a", "x", 1),
        ("b", "y", 2),
        ("b", "y", 3),
    ]


def test_one_negative_prompt_holds_for_all() -> None:
    assert {picture.negative_prompt for picture in make_request(["a", "b"], "x", seed=0).pictures} == {"x"}


def test_a_list_of_seeds_gives_each_pictures() -> None:
    assert [picture.seed for picture in make_request(["a", "b"], seed=[9, 0]).pictures] == [9, 0]


def test_seed_0_is_a_seed() -> None:
    assert make_request("a", seed=0).pictures[0].seed == 0


def test_without_a_seed_one_is_drawn() -> None:
    drawn = {make_request("a").pictures[0].seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < DRAWN_SEEDS for seed in drawn)


@pytest.mark.parametrize(("scale", "guided"), [(-3, False), (0, False), (1, False), (1.0001, True), (7.5, True)])
def test_guidance_is_off_at_1_and_below(scale: float, guided: bool) -> None:
    assert make_request("a", guidance_scale=scale).guided is guided


def test_the_ends_of_every_range_are_inside() -> None:
    make_request("a", num_inference_steps=1, seed=MAX_SEED, guidance_scale=-MAX_GUIDANCE_SCALE)
    make_request("a", num_inference_steps=MAX_STEPS, guidance_scale=MAX_GUIDANCE_SCALE)
    make_request("a" * PROMPT_LIMIT_CHARACTERS, num_images_per_prompt=MAX_PICTURES, seed=MAX_SEED - MAX_PICTURES + 1)
    for seed in (2**32, 2**63):
        assert make_request("a", seed=seed).pictures[0].seed == seed


@pytest.mark.parametrize(
    ("strength", "steps", "start"),
    # 50 * 0.58 is 28.999... in floating point; diffusers cuts it to 28.
    [(1, 50, 0), (0.8, 50, 10), (0.75, 25, 7), (0.02, 50, 49), (0.58, 50, 22), (0.5, 3, 2)],
)
def test_strength_says_where_to_start_as_in_diffusers(strength: float, steps: int, start: int) -> None:
    request = make_request("a", strength=strength, num_inference_steps=steps)
    assert request.start_step == start
    assert request == make_request("a", start_step=start, num_inference_steps=steps, seed=request.pictures[0].seed)
    assert request.strength == pytest.approx((steps - start) / steps)


def test_without_an_initial_picture_there_is_no_start() -> None:
    request = make_request("a")
    assert (request.start_step, request.strength, request.lms_start) == (None, None, "diffusers")
    assert make_request("a", start_step=0).strength == 1


@pytest.mark.parametrize("prompt", ["", "  ", "nul\0byte", "\N{FAMILY}\N{ZERO WIDTH JOINER}", "e" + "\u0301" * 500])
def test_strange_text_is_text(prompt: str) -> None:
    assert make_request(prompt, prompt).pictures[0].prompt == prompt


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be a whole number, 1 to 1000"),
        ({"num_inference_steps": -1}, "1 to 1000"),
        ({"num_inference_steps": 1001}, "1 to 1000"),
        ({"num_inference_steps": 10**9}, "1 to 1000"),
        ({"num_inference_steps": 10.0}, "10.0"),
        ({"num_inference_steps": True}, "True"),
        ({"num_inference_steps": "9" * 5000}, "'9999"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"guidance_scale": 1e9}, "-1000 to 1000"),
        ({"guidance_scale": "7.5"}, "guidance_scale is '7.5'"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"seed": -1}, f"0 to {MAX_SEED}"),
        ({"seed": MAX_SEED + 1}, f"0 to {MAX_SEED}"),
        ({"seed": MAX_SEED, "num_images_per_prompt": 2}, f"0 to {MAX_SEED}"),
        ({"seed": True}, "seed is True"),
        ({"seed": [1, -1], "num_images_per_prompt": 2}, "seed is -1"),
        ({"seed": [1] * 3}, "3 seeds do not fit 1 pictures"),
        ({"num_images_per_prompt": 0}, "1 to 256"),
        ({"num_images_per_prompt": 10**6}, "1 to 256"),
        ({"prompt": []}, "0 pictures"),
        ({"prompt": ["a"] * 200, "num_images_per_prompt": 2}, "400 pictures"),
        ({"prompt": ["a", 7]}, "prompt holds a int"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"prompt": "a" * (PROMPT_LIMIT_CHARACTERS + 1)}, "100001 characters"),
        ({"negative_prompt": "\udfff"}, "negative_prompt has a lone surrogate"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts do not fit 1 prompts"),
        ({"negative_prompt": [None]}, "negative_prompt holds a NoneType"),
        ({"strength": 0}, "above 0 and up to 1"),
        ({"strength": -0.1}, "above 0 and up to 1"),
        ({"strength": 1.01}, "above 0 and up to 1"),
        ({"strength": math.nan}, "strength is nan"),
        ({"strength": True}, "strength is True"),
        ({"strength": "1"}, "strength is '1'"),
        ({"strength": 0.01}, "leaves none of 50 steps"),
        ({"start_step": -1}, "0 to 49"),
        ({"start_step": 50}, "0 to 49"),
        ({"start_step": 1.0}, "start_step is 1.0"),
        ({"start_step": 1, "strength": 0.5}, "exclude each other"),
        ({"lms_start": "cold"}, "lms_start is 'cold'"),
    ],
    ids=lambda value: "",
)
def test_what_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_request(**{"prompt": "a", **arguments})
    assert named in caught.value.message
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


def test_a_guidance_interval_is_two_sigmas() -> None:
    assert make_request("a cat").guidance_interval is None
    assert make_request("a cat", guidance_interval=[0, 5]).guidance_interval == (0.0, 5.0)


@pytest.mark.parametrize(
    "sigmas", [(), (1,), (1, 2, 3), (5, 1), (1, 1), (-1, 1), (0, float("inf")), (0, float("nan")), ("0", 5), (0, True)]
)
def test_what_is_no_guidance_interval_is_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"guidance_interval is .*0 <= low < high"):
        make_request("a cat", guidance_interval=sigmas)
