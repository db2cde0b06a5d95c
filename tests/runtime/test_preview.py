"""Previews: close to what the decoder makes, of the estimate that each step would end at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.engines.engine_set import EngineSet
from sdrt.runtime.lms import derivative
from sdrt.runtime.preview import Preview, Projection

Sets = Callable[..., EngineSet]


@pytest.fixture(scope="module")
def pipe(hand_sets: Sets) -> Iterator[Pipeline]:
    with Pipeline(hand_sets()) as opened:
        yield opened


def levels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(picture, np.float64)


class Identity(Projection):
    """Keeps the latents that it is asked to show."""

    def __init__(self) -> None:
        super().__init__(np.zeros((5, 3), np.float32))
        object.__setattr__(self, "seen", [])

    def pictures(self, latents: Any) -> list[Image.Image]:
        self.seen.append(latents)  # type: ignore[attr-defined]
        return super().pictures(latents)


def test_a_linear_decoder_is_found_exactly() -> None:
    weights = np.array([[20, 0, -9], [3, 30, 0], [0, -8, 15], [5, 5, 5], [120, 130, 110]], np.float32)

    class Linear:
        """Stands for a pipeline whose decoder enlarges a linear map of each latent pixel eightfold."""

        model = type("Model", (), {"latent_channels": 4, "latent_size": 64})

        def decode(self, latents: Any) -> list[Image.Image]:
            (small,) = Projection(weights).pictures(latents)
            return [small.resize((512, 512), Image.Resampling.NEAREST)]

        def done_with(self, name: str) -> None:
            assert name == "vae_decoder"

    found = Projection.fit(Linear())  # type: ignore[arg-type]
    # Levels are whole numbers up to 0.5 off, averaged over 64 squares.
    np.testing.assert_allclose(found.weights, weights, atol=0.5)


def test_pictures_have_a_pixel_a_latent_pixel() -> None:
    weights = np.zeros((5, 3), np.float32)
    weights[0, 0], weights[4] = 100, (50, 128, 300)
    latents = np.zeros((2, 4, 8, 6), np.float32)
    latents[1, 0] = 1
    first, second = Projection(weights).pictures(latents)
    assert (first.size, first.mode) == ((6, 8), "RGB")
    assert first.getpixel((0, 0)) == (50, 128, 255)
    assert second.getpixel((5, 7)) == (150, 128, 255)


def test_the_estimate_is_where_the_step_leads(pipe: Pipeline) -> None:
    """By a first-order schedule, in which the derivative between two latents is the one that was computed."""
    shown: list[int] = []
    projection = Identity()
    preview = Preview(projection, lambda steps, pictures: shown.append(steps))
    latents = [np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)]
    slopes = [np.random.default_rng(index).standard_normal((1, 4, 8, 8), np.float32) for index in (1, 2, 3)]
    pipe("a", seed=0, num_inference_steps=3)
    assert pipe.schedule is not None
    sigmas = pipe.schedule.sigmas
    for step, slope in enumerate(slopes):
        moved = derivative(latents[-1], slope, sigmas[step], "epsilon")
        latents.append(latents[-1] + np.float32(sigmas[step + 1] - sigmas[step]) * moved)
        preview(pipe, step, 0.0, {"latents": latents[-1]})
    # The first step has nothing before it; the last ends at sigma 0, where latents are the picture.
    assert shown == [2, 3]
    expected = latents[2] - np.float32(sigmas[2]) * slopes[1]
    # sigma over the step's width magnifies the rounding of latents of some 10.
    np.testing.assert_allclose(projection.seen[0], expected, atol=1e-4)  # type: ignore[attr-defined]
    assert (projection.seen[1] == latents[3]).all()  # type: ignore[attr-defined]


def test_a_run_is_watched_and_not_changed(pipe: Pipeline) -> None:
    shown: list[tuple[int, int]] = []

    def show(steps: int, pictures: Sequence[Image.Image]) -> None:
        shown.append((steps, len(pictures)))

    preview = Preview(Projection.fit(pipe), show)
    count = pipe.pictures_at_once(pipe("a", seed=0, num_inference_steps=1).request) + 1
    arguments: dict[str, Any] = {"seed": 0, "num_inference_steps": 3, "num_images_per_prompt": count}
    watched = pipe("a red circle", callback_on_step_end=preview, **arguments)
    # Two groups; each begins anew.
    assert shown == [(2, count - 1), (3, count - 1), (2, 1), (3, 1)]
    assert (watched.latents == pipe("a red circle", **arguments).latents).all()


def test_a_single_step_is_shown(pipe: Pipeline) -> None:
    shown: list[int] = []
    preview = Preview(Projection.fit(pipe), lambda steps, _: shown.append(steps))
    pipe("a", seed=0, num_inference_steps=1, callback_on_step_end=preview)
    assert shown == [1]
