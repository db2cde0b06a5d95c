"""Noising, prediction and trajectory by the tiny checkpoint's engines: each equals the runtime's own result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrt.errors import UsageError
from sdrt.pipeline import Pipeline
from sdrt.plots.model import Model
from sdrt.plots.noising import draw_noising, noise_picture, shown_steps
from sdrt.plots.prediction import TITLES, draw_prediction, four, predict
from sdrt.plots.trajectory import (
    FRAME_MS,
    LAST_FRAME_MS,
    check_animation,
    draw_trajectory,
    follow,
    write_animation,
)
from sdrt.progress import silent
from sdrt.runtime.init_image import InitImage
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Schedule

SEED = 7
# Results of the same engines differ by the rounding of a few float32 operations.
ROUNDING = 1e-5


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def sample_of(picture: Image.Image) -> np.ndarray:
    return InitImage.of(picture, 512).sample()


def test_noising_adds_the_seeds_noise_at_each_steps_sigma(model: Model, picture: Image.Image) -> None:
    found = noise_picture(model, sample_of(picture), seed=SEED, num_inference_steps=11, every=5, progress=silent)
    schedule = model.schedule(11)
    latents = model.encode(sample_of(picture))
    assert [each.step for each in found] == [0, 5, 10]
    for each in found:
        assert each.sigma == schedule.sigmas[each.step]
        assert each.timestep == schedule.timesteps[each.step]
        noisy = latents + np.float32(each.sigma) * unit_noise([SEED])
        assert each.latents_std == pytest.approx(float(noisy.std()), rel=ROUNDING)
        assert np.array_equal(pixels(each.picture), pixels(model.decode(noisy)))
    # The less noise, the closer to the VAE's reconstruction.
    clean = pixels(model.decode(latents))
    distances = [np.abs(pixels(each.picture) - clean).mean() for each in found]
    assert distances[0] > distances[1] > distances[2]
    figure = draw_noising(found, "caption")
    assert [axes.get_title() for axes in figure.axes] == [
        f"step {n}, sigma {schedule.sigmas[n]:.3g}" for n in (0, 5, 10)
    ]


def test_as_many_pictures_as_a_figure_holds() -> None:
    assert shown_steps(51, 10) == [0, 10, 20, 30, 40, 50]
    assert len(shown_steps(60, 1)) == 60
    with pytest.raises(UsageError, match="61 pictures") as caught:
        shown_steps(61, 1)
    assert caught.value.hint == "give --every 2 or more"
    assert shown_steps(61, 2)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_prediction_is_one_call_of_the_unet(model: Model, picture: Image.Image, guidance_scale: float) -> None:
    found = predict(
        model,
        prompt="",
        sample=sample_of(picture),
        step=4,
        num_inference_steps=6,
        guidance_scale=guidance_scale,
        seed=SEED,
        progress=silent,
    )
    schedule = model.schedule(6)
    sigma = np.float32(schedule.sigmas[4])
    noisy = model.encode(sample_of(picture)) + sigma * unit_noise([SEED])
    # The empty prompt is its own negative, so guidance between the two changes nothing.
    states = model.conditioning("", 1.0).prompt_embeds
    output = model.unet.run(
        sample=noisy / np.sqrt(sigma**2 + 1),
        timestep=schedule.timesteps[4:5].astype(np.float32),
        encoder_hidden_states=states,
    )["out_sample"]
    assert np.abs(found.found.noise - output).max() < ROUNDING * 100
    latents = four(found.found)
    assert np.allclose(latents["noisy_minus_noise"], noisy - output, atol=1e-3)
    assert np.allclose(latents["denoised"], noisy - sigma * output, atol=1e-3)
    assert not np.allclose(latents["denoised"], latents["noisy_minus_noise"], atol=1e-3)
    for name, values in latents.items():
        assert np.array_equal(pixels(found.pictures[name]), pixels(model.decode(values)))
    numbers = found.numbers()
    assert numbers["noise_mse"] == pytest.approx(float(np.mean((output - unit_noise([SEED])) ** 2)), rel=1e-3)
    assert -1 <= numbers["noise_correlation"] <= 1
    assert [axes.get_title() for axes in draw_prediction(found, "caption").axes] == list(TITLES.values())


@pytest.mark.parametrize("step", [0, 3])
def test_a_prompts_prediction_stands_on_its_own_trajectory(model: Model, step: int) -> None:
    common = {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 2.0, "seed": SEED}
    predicted = predict(model, sample=None, step=step, progress=silent, **common)  # type: ignore[arg-type]
    followed = follow(model, every=1, progress=silent, **common)  # type: ignore[arg-type]
    numbers = followed.steps[step]
    assert predicted.found.sigma == numbers["sigma"]
    assert np.linalg.norm(predicted.found.latents) == pytest.approx(numbers["latents_norm"], rel=ROUNDING)
    assert np.linalg.norm(predicted.found.noise) == pytest.approx(numbers["noise_norm"], rel=ROUNDING)
    assert np.array_equal(pixels(predicted.pictures["denoised"]), pixels(followed.shown[step].picture))
    assert predicted.numbers()["noise_mse"] is None


def test_a_step_that_the_schedule_lacks(model: Model) -> None:
    for step in (5, -1):
        with pytest.raises(UsageError, match="not one of the 5 steps"):
            predict(
                model,
                prompt="",
                sample=None,
                step=step,
                num_inference_steps=5,
                guidance_scale=1,
                seed=0,
                progress=silent,
            )


def test_a_trajectory_ends_in_the_pipelines_picture(model: Model) -> None:
    found = follow(
        model, prompt="a red circle", num_inference_steps=4, guidance_scale=3.0, every=3, seed=SEED, progress=silent
    )
    with Pipeline(model.engines, loop="plain") as pipeline:
        drawn = pipeline("a red circle", seed=SEED, num_inference_steps=4, guidance_scale=3.0)
        other = pipeline("a red circle", seed=SEED + 1, num_inference_steps=4, guidance_scale=3.0)
    assert found.final is not None
    assert np.array_equal(pixels(found.final), pixels(drawn.images[0]))
    assert not np.array_equal(pixels(found.final), pixels(other.images[0]))
    assert [each.step for each in found.shown] == [0, 3]
    assert len(found.steps) == 4
    first = found.steps[0]
    schedule: Schedule = model.schedule(4)
    assert first["latents_norm"] == pytest.approx(
        float(np.linalg.norm(unit_noise([SEED]))) * schedule.init_noise_sigma, rel=ROUNDING
    )
    figure = draw_trajectory(found, "a prompt", "caption")
    (lower,) = [axes for axes in figure.axes if axes.get_xlabel()]
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("sampling step", "L2 norm of 16384 values")
    labels = {line.get_label(): list(line.get_ydata()) for line in lower.get_lines()}  # type: ignore[arg-type]
    assert labels["latents"] == [step["latents_norm"] for step in found.steps]
    assert set(labels) == {"latents", "predicted noise", "denoised estimate"}


@pytest.mark.parametrize("name", ["steps.gif", "steps.png"])
def test_an_animation_shows_every_picture_and_rests_on_the_last(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 32), (60 * index, 0, 0)) for index in range(4)]
    write_animation(frames, tmp_path / name)
    with Image.open(tmp_path / name) as written:
        assert (getattr(written, "n_frames", 1), written.info["loop"]) == (4, 0)
        durations = []
        for index in range(4):
            written.seek(index)
            durations.append(written.info["duration"])
            assert written.convert("RGB").getpixel((5, 5)) == (60 * index, 0, 0)
    assert durations == [FRAME_MS] * 3 + [LAST_FRAME_MS]


def test_an_animation_is_a_gif_or_a_png() -> None:
    check_animation(Path("a.GIF"))
    with pytest.raises(UsageError, match=r"neither \.gif nor \.png"):
        check_animation(Path("a.svg"))
