"""The demo's scenes: repeatable, described correctly, and held out where they should be."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.scenes import caption, draw, held_out, random_scene
from sdrt.compare.scene_grammar import PALETTE, SHAPES, SIZES, TEXTURES, Scene, Thing, parse_caption

things = st.builds(
    Thing,
    shape=st.sampled_from(SHAPES),
    colour=st.sampled_from(list(PALETTE)),
    size=st.sampled_from(("", *SIZES)),
    texture=st.sampled_from(("", *TEXTURES)),
)
#: The values with which the committed weights were trained.
HELD_OUT_OF_THE_FIRST_100 = [0, 20, 25, 35, 80, 84, 94]

textures = st.sampled_from(("", *TEXTURES))
single = st.builds(Scene, st.tuples(things), st.sampled_from(list(PALETTE)), textures)
pair = st.builds(
    Scene,
    st.tuples(things, things),
    st.sampled_from(list(PALETTE)),
    textures,
    st.sampled_from(("left of", "right of", "above", "below")),
)


@given(single | pair, st.integers(0, 2**32))
def test_a_complete_caption_reads_back_as_its_scene(scene: Scene, seed: int) -> None:
    assert parse_caption(caption(random.Random(seed), scene, complete=True)) == scene


@given(single | pair, st.integers(0, 2**32))
def test_a_caption_leaves_open_or_tells_the_truth(scene: Scene, seed: int) -> None:
    read = parse_caption(caption(random.Random(seed), scene))
    told = tuple(replace(t, colour=r.colour and t.colour) for t, r in zip(scene.things, read.things, strict=True))
    assert read == replace(scene, things=told, background=read.background and scene.background)


def test_the_same_seed_draws_the_same_scene_and_picture() -> None:
    first, again, other = (random.Random(seed) for seed in (1, 1, 2))
    pictures = [np.asarray(draw(random_scene(rng), 64, rng)) for rng in (first, again, other)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_one_scene_in_sixteen_is_held_out_and_always_the_same() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(4000)]
    share = sum(map(held_out, scenes)) / len(scenes)
    assert share == pytest.approx(1 / 16, abs=3 * (1 / 16 / 4000) ** 0.5)  # three standard deviations of a count
    # Pinned: with another hash, scenes that a trained checkpoint has seen would count as held out.
    assert [k for k, scene in enumerate(scenes[:100]) if held_out(scene)] == HELD_OUT_OF_THE_FIRST_100


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_single_object_covers_half_the_width_and_leaves_the_corners(shape: str) -> None:
    picture = np.asarray(draw(Scene((Thing(shape, "red", "large"),), "white"), 128, random.Random(0)))
    inside = (picture[:, :, 1] < 128).any(0)
    assert inside.sum() >= 64
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == PALETTE["white"][0]).all()
