"""Pictures that start from a picture: where they start, what they depend on, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrt import Pipeline, Result
from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import COMPONENTS
from sdrt.errors import EngineError, NumericError, UsageError
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.init_image import InitImage, draw_latents
from sdrt.runtime.picture_record import PictureRecord
from sdrt.runtime.request import make_request
from sdrt.sampling.latents import posterior_noise, unit_noise
from tests.helpers.fixtures import Sets
from tests.models.tiny_bundle import LATENTS

Array = npt.NDArray[Any]

STEPS = 10
#: Relative to the largest latent: another batch gives another order of sums; a few steps amplify that.
BATCH_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pipe(hand_sets: Sets) -> Iterator[Pipeline]:
    with Pipeline(hand_sets()) as opened:
        yield opened


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8))


def draw(pipe: Pipeline, **arguments: Any) -> Result:
    settings = {"image": picture(), "num_inference_steps": STEPS, "seed": 3, **arguments}
    return pipe(settings.pop("prompt", "a red circle"), **settings)


def seen(pipe: Pipeline, **arguments: Any) -> list[tuple[int, float]]:
    """List step and timestep of every call of the callback."""
    steps: list[tuple[int, float]] = []

    def watch(_pipe: Pipeline, step: int, timestep: float, _values: Any) -> None:
        steps.append((step, timestep))

    draw(pipe, callback_on_step_end=watch, **arguments)
    return steps


def test_the_last_steps_run_counted_from_0_as_in_diffusers(pipe: Pipeline) -> None:
    whole = seen(pipe, image=None)
    assert [step for step, _ in whole] == list(range(STEPS))
    for arguments in ({"start_step": 7}, {"strength": 0.3}):
        assert seen(pipe, **arguments) == [(index, timestep) for index, (_, timestep) in enumerate(whole[7:])]
    # By default, diffusers' strength of 0.8.
    assert len(seen(pipe)) == 8


@pytest.mark.parametrize("start_step", [0, 4, 9])
def test_denoising_starts_at_the_picture_with_noise_on_it(
    pipe: Pipeline, start_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Array]] = []
    run = Engine.run

    def spy(engine: Engine, **feeds: Array) -> dict[str, Array]:
        if engine.name == "unet":
            runs.append(feeds)
        return run(engine, **feeds)

    parameters = pipe._session.engine("vae_encoder").run(sample=InitImage.of(picture(), 16).sample())
    monkeypatch.setattr(Engine, "run", spy)
    draw(pipe, start_step=start_step)
    assert pipe.schedule is not None
    sigma = pipe.schedule.sigmas[0]
    drawn = draw_latents(parameters["latent_parameters"], posterior_noise([3], LATENTS)) * pipe.model.scaling_factor
    expected = (drawn + unit_noise([3], LATENTS) * sigma) / np.sqrt(sigma**2 + 1)
    # Single precision, a few operations.
    np.testing.assert_allclose(runs[0]["sample"][:1], expected, rtol=1e-4, atol=1e-5)
    assert len(runs) == STEPS - start_step


def test_a_picture_depends_on_its_own_seed_only(pipe: Pipeline) -> None:
    together = draw(pipe, num_images_per_prompt=6, start_step=5)
    for index in (0, 5):
        alone = draw(pipe, seed=3 + index, start_step=5)
        difference = np.abs(together.latents[index] - alone.latents[0]).max() / np.abs(alone.latents).max()
        assert difference < BATCH_TOLERANCE
    assert np.abs(together.latents[0] - together.latents[5]).max() > 0.1


def test_noise_of_the_two_kinds_is_independent() -> None:
    first, inner = unit_noise([1, 2]).ravel(), posterior_noise([1, 2]).ravel()
    # Of 32,768 pairs: four standard deviations of the mean product.
    assert abs(float(np.mean(first * inner))) < 4 / np.sqrt(first.size)
    assert (posterior_noise([2]) == posterior_noise([1, 2])[1:]).all()


def test_the_picture_the_start_and_the_way_decide(pipe: Pipeline) -> None:
    latents = [
        draw(pipe, **arguments).latents
        for arguments in ({}, {"image": picture(1)}, {"start_step": 3}, {"lms_start": "fresh"}, {"image": None})
    ]
    for index, one in enumerate(latents):
        for other in latents[:index]:
            assert np.abs(one - other).max() > 1e-3
    assert (draw(pipe).latents == latents[0]).all()


def test_latents_given_are_the_noise(pipe: Pipeline) -> None:
    # The seed still samples the encoder's distribution.
    assert (draw(pipe, latents=unit_noise([3], LATENTS)).latents == draw(pipe).latents).all()
    assert (draw(pipe, latents=unit_noise([4], LATENTS)).latents != draw(pipe).latents).any()


def test_records_say_what_it_was_started_from(pipe: Pipeline) -> None:
    (record,) = draw(pipe, start_step=4, lms_start="fresh").records
    digest = InitImage.of(picture(), 16).digest
    assert (record["init_image"], record["start_step"], record["lms_start"]) == (digest, 4, "fresh")
    PictureRecord.model_validate(record | {"batch": [tuple(row) for row in record["batch"]]})
    (without,) = draw(pipe, image=None).records
    assert (without["init_image"], without["start_step"], without["lms_start"]) == (None, None, None)


def test_the_encoder_is_timed(pipe: Pipeline) -> None:
    assert draw(pipe).timings.vae_encoder > 0
    assert draw(pipe, image=None).timings.vae_encoder == 0


def test_engines_of_larger_batches_encode_too(hand_sets: Sets) -> None:
    with Pipeline(hand_sets(batch=BatchRange(min=2, opt=2, max=2))) as pipe:
        two = draw(pipe, num_images_per_prompt=2)
    with Pipeline(hand_sets()) as pipe:
        expected = draw(pipe, num_images_per_prompt=2)
    assert np.abs(two.latents - expected.latents).max() / np.abs(expected.latents).max() < BATCH_TOLERANCE


def test_engines_without_the_encoder_say_so(hand_sets: Sets) -> None:
    names = tuple(name for name in COMPONENTS if name != "vae_encoder")
    with Pipeline(hand_sets(components=names)) as pipe:
        with pytest.raises(EngineError, match="holds no vae_encoder"):
            draw(pipe)
        draw(pipe, image=None)


def test_a_picture_and_where_to_start_come_together(pipe: Pipeline) -> None:
    for arguments in ({"strength": 0.5}, {"start_step": 3}):
        with pytest.raises(UsageError, match="belong together"):
            draw(pipe, image=None, **arguments)
    with pytest.raises(UsageError, match="belong together"):
        pipe.run(make_request("a", seed=0), image=picture())


def test_an_encoder_that_gives_no_numbers_makes_no_picture(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.run

    def broken(engine: Engine, **feeds: Array) -> dict[str, Array]:
        outputs = run(engine, **feeds)
        if engine.name == "vae_encoder":
            outputs["latent_parameters"].flat[3] = np.nan
        return outputs

    monkeypatch.setattr(Engine, "run", broken)
    with pytest.raises(NumericError, match=r"^vae_encoder gave 1 NaN"):
        draw(pipe)
