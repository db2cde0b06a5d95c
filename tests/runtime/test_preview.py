"""Previews: close to the decoder's picture of the estimate at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.runtime.preview import Preview, Projection
from tests.helpers.fixtures import Sets


@pytest.fixture(scope="module")
def pipe(hand_sets: Sets) -> Iterator[Pipeline]:
    with Pipeline(hand_sets()) as opened:
        yield opened


def levels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(picture, np.float64)


def test_a_linear_decoder_is_found_exactly() -> None:
    weights = np.array([[20, 0, -9], [3, 30, 0], [0, -8, 15], [5, 5, 5], [120, 130, 110]], np.float32)
    latents = np.random.default_rng(0).standard_normal((2, 4, 48, 64), np.float32)
    small = Projection(weights).pictures(latents)
    decoded = [picture.resize((512, 384), Image.Resampling.NEAREST) for picture in small]
    # Levels are whole numbers, up to 0.5 off each; over 6,144 pixels that averages out.
    np.testing.assert_allclose(Projection.fit(latents, decoded).weights, weights, atol=0.1)


def test_pictures_have_a_pixel_a_latent_pixel() -> None:
    weights = np.zeros((5, 3), np.float32)
    weights[0, 0], weights[4] = 100, (50, 128, 300)
    latents = np.zeros((2, 4, 8, 6), np.float32)
    latents[1, 0] = 1
    first, second = Projection(weights).pictures(latents)
    assert (first.size, first.mode) == ((6, 8), "RGB")
    assert first.getpixel((0, 0)) == (50, 128, 255)
    assert second.getpixel((5, 7)) == (150, 128, 255)


def test_the_estimate_is_where_the_step_leads(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a first-order schedule, in which the derivative between two latents is the computed one."""
    shown: list[int] = []
    seen: list[Any] = []
    original = Projection.pictures

    def watched(projection: Projection, latents: Any) -> list[Image.Image]:
        seen.append(latents)
        return original(projection, latents)

    monkeypatch.setattr(Projection, "pictures", watched)
    preview = Preview(lambda steps, pictures: shown.append(steps))
    latents = [np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)]
    slopes = [np.random.default_rng(index).standard_normal((1, 4, 8, 8), np.float32) for index in (1, 2, 3)]
    pipe("a", seed=0, num_inference_steps=3)
    assert pipe.schedule is not None
    sigmas = pipe.schedule.sigmas
    for step, slope in enumerate(slopes):
        latents.append(latents[-1] + np.float32(sigmas[step + 1] - sigmas[step]) * slope)
        preview(pipe, step, 0.0, {"latents": latents[-1]})
    # The first step has nothing before it; the last ends at sigma 0, where latents are the picture.
    assert shown == [2, 3]
    # sigma over the step's width magnifies the rounding of latents of some 10.
    np.testing.assert_allclose(seen[0], latents[2] - np.float32(sigmas[2]) * slopes[1], atol=1e-4)
    assert (seen[1] == latents[3]).all()


def test_previews_come_close_to_what_the_decoder_makes(pipe: Pipeline) -> None:
    shown: list[Image.Image] = []
    result = pipe(
        "a", seed=0, num_inference_steps=8, callback_on_step_end=Preview(lambda _, found: shown.extend(found))
    )
    small = levels(result.images[0].resize((8, 8), Image.Resampling.BOX))
    error = np.abs(levels(shown[-1]) - small).mean()
    # The control: how far apart colours are that are matched at random. This decoder's are black and full colour, which
    # no linear map gives; measured half.
    assert error < 0.7 * np.abs(np.roll(small, 3, axis=(0, 1)) - small).mean()


@pytest.mark.parametrize(("steps", "decoded"), [(1, 1), (2, 1), (3, 1), (4, 2), (20, 2)])
def test_the_decoder_runs_twice_at_most(
    pipe: Pipeline, steps: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = Pipeline.decode

    def counting(given: Pipeline, latents: Any) -> Any:
        calls.append(len(latents))
        return decode(given, latents)

    monkeypatch.setattr(Pipeline, "decode", counting)
    pipe("a", seed=0, num_inference_steps=steps, callback_on_step_end=Preview(lambda *_: None))
    # The last is the picture itself.
    assert len(calls) == decoded + 1


def test_a_run_is_watched_and_not_changed(pipe: Pipeline) -> None:
    shown: list[tuple[int, int]] = []

    def show(steps: int, pictures: Sequence[Image.Image]) -> None:
        shown.append((steps, len(pictures)))

    preview = Preview(show)
    count = pipe.pictures_at_once(pipe("a", seed=0, num_inference_steps=1).request) + 1
    arguments: dict[str, Any] = {"seed": 0, "num_inference_steps": 3, "num_images_per_prompt": count}
    watched = pipe("a red circle", callback_on_step_end=preview, **arguments)
    # Two groups; each begins anew.
    assert shown == [(2, count - 1), (3, count - 1), (2, 1), (3, 1)]
    assert (watched.latents == pipe("a red circle", **arguments).latents).all()


def test_a_single_step_is_shown(pipe: Pipeline) -> None:
    shown: list[int] = []
    preview = Preview(lambda steps, _: shown.append(steps))
    pipe("a", seed=0, num_inference_steps=1, callback_on_step_end=preview)
    assert shown == [1]
