"""Requests: laid out picture by picture, and refused with the argument and its range before anything is loaded."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sdrt.errors import UsageError
from sdrt.limits import MAX_GUIDANCE_SCALE, MAX_PICTURES, MAX_SEED, MAX_STEPS, PROMPT_LIMIT_CHARACTERS
from sdrt.runtime.request import DRAWN_SEEDS, Picture, Request, make_request


def test_one_prompt_is_one_picture() -> None:
    request = make_request("a cat", seed=3)
    assert request == Request((Picture("a cat", "", 3),), 50, 7.5, guidance_left_open=True)
    assert make_request("a cat", seed=3, guidance_scale=7.5) == Request((Picture("a cat", "", 3),), 50, 7.5)


def test_a_checkpoint_decides_what_was_left_open_and_nothing_else() -> None:
    assert make_request("a cat", seed=3).with_defaults(4.0) == make_request("a cat", seed=3, guidance_scale=4.0)
    assert make_request("a cat", seed=3, guidance_scale=7.5).with_defaults(4.0).guidance_scale == 7.5


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
        ({"num_inference_steps": 10.5}, "num_inference_steps is 10.5; it must be a whole number"),
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
        ({"seed": "abc"}, f"seed is 'abc'; it must be a whole number, 0 to {MAX_SEED}, or a list of them"),
        ({"seed": "5"}, "seed is '5'; it must be a whole number"),
        ({"seed": 5.5}, "seed is 5.5; it must be a whole number"),
        ({"seed": 5j}, "seed is 5j; it must be a whole number"),
        ({"seed": object()}, "it must be a whole number"),
        ({"seed": {5}}, "seed is {5}; it must be a whole number"),
        ({"seed": np.True_}, "seed is np.True_; it must be a whole number"),
        ({"seed": np.int8(-1)}, "seed is -1; it must be a whole number"),
        ({"seed": np.float32(5.5)}, "seed is 5.5; it must be a whole number"),
        ({"seed": np.array(["5"])}, "seed is np.str_('5'); it must be"),
        ({"seed": np.array([[5]])}, "seed is array([5]); it must be a whole number"),
        ({"seed": np.array([True])}, "seed is np.True_; it must be a whole number"),
        ({"seed": np.arange(3)}, "3 seeds do not fit 1 pictures"),
        ({"seed": [1] * 3}, "3 seeds do not fit 1 pictures"),
        ({"num_images_per_prompt": 0}, "1 to 256"),
        ({"num_images_per_prompt": None}, "num_images_per_prompt is None; it must be a whole number"),
        ({"num_inference_steps": None}, "num_inference_steps is None; it must be a whole number"),
        ({"num_inference_steps": np.array([2])}, "num_inference_steps is array([2]); it must be"),
        ({"num_inference_steps": np.float64("nan")}, "num_inference_steps is nan; it must be"),
        ({"num_inference_steps": math.inf}, "num_inference_steps is inf; it must be"),
        ({"num_inference_steps": 10**5000}, "num_inference_steps is a int; it must be"),
        ({"guidance_scale": np.True_}, "guidance_scale is np.True_; it must be a finite number"),
        ({"guidance_scale": np.float32("nan")}, "guidance_scale is nan; it must be a finite number"),
        ({"guidance_scale": np.complex64(7)}, "it must be a finite number"),
        ({"guidance_scale": [7.5]}, "guidance_scale is [7.5]; it must be a finite number"),
        ({"guidance_scale": np.array([7.5])}, "guidance_scale is array([7.5]); it must be a finite number"),
        ({"guidance_scale": 10**400}, "it must be a finite number"),
        ({"guidance_interval": 5}, "guidance_interval is 5; it must be two sigmas"),
        ({"guidance_interval": "05"}, "guidance_interval is '05'; it must be two sigmas"),
        ({"deepcache": 1}, "deepcache is 1; it must be a whole number, 2 to 1000"),
        ({"deepcache": True}, "deepcache is True"),
        ({"lms_start": None}, "lms_start is None"),
        ({"lms_start": np.arange(2)}, "lms_start is array([0, 1])"),
        ({"num_images_per_prompt": 10**6}, "1 to 256"),
        ({"prompt": []}, "0 pictures"),
        ({"prompt": ["a"] * 200, "num_images_per_prompt": 2}, "400 pictures"),
        ({"prompt": ["a", 7]}, "prompt holds a int"),
        ({"prompt": None}, "prompt is None; it must be text, or a list of texts"),
        ({"prompt": 5}, "prompt is 5; it must be text"),
        ({"prompt": b"a"}, "prompt is b'a'; it must be text"),
        ({"prompt": {"a": 1}}, "prompt is {'a': 1}; it must be text"),
        ({"prompt": {"a"}}, "prompt is {'a'}; it must be text"),
        ({"prompt": np.array(5)}, "prompt is 5; it must be text"),
        ({"prompt": [["a"]]}, "prompt holds a list"),
        ({"negative_prompt": 3}, "negative_prompt is 3; it must be text"),
        ({"negative_prompt": True}, "negative_prompt is True; it must be text"),
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
        ({"start_step": 1.5}, "start_step is 1.5"),
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


class Tensor:
    """A number as in torch: of no NumPy type, and identified by its dtype."""

    def __init__(self, value: Any, dtype: str) -> None:
        self.value, self.dtype, self.ndim = value, dtype, 0

    def __index__(self) -> int:
        if not isinstance(self.value, int):
            raise TypeError
        return self.value

    def __float__(self) -> float:
        return float(self.value)


FIVES: list[Any] = [
    *(5.0, Fraction(5), Decimal(5), np.array(5), np.array(5.0), np.longdouble(5), np.float16(5)),
    *(kind(5) for kind in (np.int8, np.uint8, np.int32, np.int64, np.uint64, np.float32, np.float64)),
    *(Tensor(5, "torch.int64"), Tensor(5.0, "torch.bfloat16")),
]


@pytest.mark.parametrize("five", FIVES, ids=lambda value: type(value).__name__)
def test_numbers_of_any_library_are_numbers(five: Any) -> None:
    zero = Tensor(0, five.dtype) if isinstance(five, Tensor) else five - five
    counts = {"num_inference_steps": five, "num_images_per_prompt": five, "start_step": zero}
    scales = {"guidance_scale": five, "guidance_interval": [0, five], "deepcache": five}
    request = make_request("a", seed=five, **counts, **scales)
    expected = make_request(
        "a", seed=5, num_inference_steps=5, num_images_per_prompt=5, start_step=0,
        guidance_scale=5.0, guidance_interval=(0.0, 5.0), deepcache=5,
    )  # fmt: skip
    assert request == expected
    # The types of JSON, by which requests are distinguished.
    assert repr(request) == repr(expected)
    assert hash(request) == hash(expected)


def test_seeds_of_any_collection_are_seeds() -> None:
    expected = make_request(["a", "b"], seed=[3, 4])
    prompts: Any = np.array(["a", "b"])
    collections: list[Any] = [(3.0, 4.0), np.array([3, 4]), np.array([3.0, 4.0]), range(3, 5), iter([3, 4])]
    for seeds in [*collections, [np.uint8(3), np.array(4)]]:
        assert repr(make_request(prompts, seed=seeds)) == repr(expected)
    pairs: list[tuple[Any, int]] = [(np.arange(1), 0), (np.uint64(MAX_SEED), MAX_SEED)]
    for one, seed in pairs:
        assert make_request("a", seed=one).pictures[0].seed == seed


def test_a_share_of_any_library_is_a_share() -> None:
    halves: list[Any] = [np.float32(0.5), np.float16(0.5), np.array(0.5), Fraction(1, 2), Tensor(0.5, "torch.float16")]
    ones: list[Any] = [1, np.int64(1), np.uint8(1)]
    nones: list[Any] = [np.True_, Tensor(True, "torch.bool"), np.complex64(0.5), "0.5", np.array([0.5])]
    assert {make_request("a", strength=half).start_step for half in halves} == {25}
    assert {make_request("a", strength=one).start_step for one in ones} == {0}
    for none in nones:
        with pytest.raises(UsageError, match="strength is "):
            make_request("a", strength=none)


def test_a_guidance_interval_is_two_sigmas() -> None:
    assert make_request("a cat").guidance_interval is None
    sigmas: Any
    for sigmas in ([0, 5], (0.0, 5.0), np.array([0, 5]), np.array([0, 5], np.float32), iter([0, 5])):
        assert make_request("a cat", guidance_interval=sigmas).guidance_interval == (0.0, 5.0)


@pytest.mark.parametrize(
    "sigmas", [(), (1,), (1, 2, 3), (5, 1), (1, 1), (-1, 1), (0, float("inf")), (0, float("nan")), ("0", 5), (0, True)]
)
def test_what_is_no_guidance_interval_is_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"guidance_interval is .*0 <= low < high"):
        make_request("a cat", guidance_interval=sigmas)
