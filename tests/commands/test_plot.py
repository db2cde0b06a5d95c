"""``sdrt plot``: each plot from the tiny checkpoint's engines, the files it lists, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from sdrt.sampling.lms import Schedule
from tests.command_line import CommandLine

GUIDED = ("--prompt", "a red circle", "--steps", 2, "--guidance-scale", 2)
#: Each plot's words, quick ones; "IMAGE" stands for a picture's path.
PLOTS: dict[str, tuple[str | int, ...]] = {
    "sigmas": ("--steps", 5, "--what", "timesteps", "--what", "sigmas"),
    "noising": ("--image", "IMAGE", "--steps", 3, "--every", 2),
    "prediction": ("--image", "IMAGE", "--steps", 3, "--step", 1),
    "trajectory": (*GUIDED, "--every", 2),
    "attention": GUIDED,
}


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Write a wide picture with transparency."""
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((300, 200)).convert("LA").save(path)
    return path


@pytest.fixture
def source(tiny_bundle: Bundle, store: Store) -> tuple[str | Path, ...]:
    return ("--bundle", tiny_bundle.path, "--store", store.root, "--backend", "onnxruntime")


def words(plot: str, image: Path) -> list[str | Path | int]:
    return ["plot", plot, *(image if word == "IMAGE" else word for word in PLOTS[plot])]


@pytest.mark.parametrize("plot", ["sigmas", "noising"])
def test_it_writes_what_it_says(
    plot: str, here: Path, image: Path, source: tuple[str | Path, ...], sdrt: CommandLine
) -> None:
    ended = sdrt(*words(plot, image), *source)
    assert ended.code == 0, ended.err
    assert ended.out == f"{plot}.png\n"
    assert [path.name for path in here.iterdir()] == [f"{plot}.png"]
    with Image.open(here / f"{plot}.png") as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 400


def numbers(plot: str, found: dict[str, Any]) -> list[Any]:
    """Return the numbers of each plot's JSON."""
    if plot == "prediction":
        return [found["sigma"], found["noise_mse"], *found["std"].values()]
    if plot == "sigmas":
        return list(found["sigmas"])
    rows, value = {
        "noising": ("pictures", "sigma"),
        "trajectory": ("steps", "latents_norm"),
        "attention": ("words", "share"),
    }[plot]
    return [row[value] for row in found[rows]]


@pytest.mark.parametrize("plot", PLOTS)
def test_json_gives_the_numbers_and_an_svg_is_one(
    plot: str, here: Path, image: Path, source: tuple[str | Path, ...], sdrt: CommandLine
) -> None:
    first = sdrt(*words(plot, image), *source, "--json", "--seed", 5, "--out", "drawn.svg")
    assert first.code == 0, first.err
    assert first.json["plot"] == plot
    assert first.json["written"] == ["drawn.svg"]
    assert first.json["checkpoint"]["name"] == "tiny"
    behind = numbers(plot, first.json)
    assert behind
    assert all(isinstance(value, float) for value in behind)
    text = (here / "drawn.svg").read_text()
    assert text.startswith("<?xml")
    assert "<svg " in text
    if plot != "sigmas":
        assert (first.json["backend"], first.json["precision"], first.json["seed"]) == ("onnxruntime", "fp32", 5)


def test_the_schedule_is_the_checkpoints(tiny_path: Path, sdrt: CommandLine, here: Path) -> None:
    import json

    config = json.loads((tiny_path / "scheduler" / "scheduler_config.json").read_bytes())
    ended = sdrt("plot", "sigmas", "--checkpoint", tiny_path, "--steps", 7, "--json", "--backend", "tensorrt")
    assert ended.json["sigmas"] == Schedule.from_config(config, 7).sigmas.tolist()
    assert (here / "sigmas.png").exists()


def test_an_animation_is_written_beside_the_figure(
    here: Path, image: Path, source: tuple[str | Path, ...], sdrt: CommandLine
) -> None:
    ended = sdrt(*words("trajectory", image), *source, "--animation", "moving.gif")
    assert ended.code == 0, ended.err
    assert ended.out == "trajectory.png\nmoving.gif\n"
    with Image.open(here / "moving.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 2


def test_a_prediction_takes_the_empty_prompt(here: Path, source: tuple[str | Path, ...], sdrt: CommandLine) -> None:
    ended = sdrt("plot", "prediction", "--prompt", "", "--steps", 3, "--step", 2, *source, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["noise_mse"] is None
    assert ended.json["step"] == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("sigmas", "--out", "a.jpg"), "neither .png nor .svg"),
        (("sigmas", "--out", "missing/a.png"), "there is no folder missing"),
        (("sigmas", "--steps", "0"), "1 to 1000"),
        (("sigmas", "--what", "alphas"), "alphas"),
        (("sigmas", "--checkpoint", "a", "--bundle", "b"), "exclude each other"),
        (("noising",), "--image is missing"),
        (("noising", "--image", "IMAGE", "--every", "0"), "1 to 1000"),
        (("noising", "--image", "IMAGE", "--every", "1", "--steps", "61"), "60 fit"),
        (("prediction",), "neither --image nor --prompt"),
        (("prediction", "--prompt", "x", "--step", "51"), "not one of the 51 steps"),
        (("prediction", "--prompt", "x", "--guidance-scale", "nan"), "-1000.0 to 1000.0"),
        (("trajectory",), "--prompt is missing"),
        (("trajectory", "--prompt", "x", "--animation", "a.mp4"), "neither .gif nor .png"),
        (("trajectory", "--prompt", "x", "--animation", "trajectory.png"), "same file"),
        (("trajectory", "--prompt", "x", "--every", "1", "--steps", "100"), "60 fit"),
        (("trajectory", "--prompt", "x" * 100_001), "the limit is 100000"),
        (("attention",), "--prompt is missing"),
        (("attention", "--prompt", "x", "--seed", "-1"), "--seed"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    given: tuple[str, ...],
    named: str,
    here: Path,
    image: Path,
    sdrt: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("engines were about to be opened")

    monkeypatch.setattr("sdrt.plots.model.Model.load", reached)
    ended = sdrt("plot", *(str(image) if word == "IMAGE" else word for word in given))
    assert ended.code == 2, ended.err
    assert named in ended.complaint
    assert list(here.iterdir()) == []


def test_a_file_that_is_no_picture(tiny_path: Path, here: Path, sdrt: CommandLine) -> None:
    (here / "fake.png").write_bytes(b"no picture")
    ended = sdrt("plot", "noising", "--image", "fake.png", "--checkpoint", tiny_path)
    assert ended.code == 3
    assert "fake.png" in ended.complaint
    assert [path.name for path in here.iterdir()] == ["fake.png"]


def test_its_help_needs_no_engine_and_no_matplotlib(sdrt: CommandLine) -> None:
    ended = sdrt("plot", "--help")
    assert ended.code == 0
    for plot in PLOTS:
        assert plot in ended.out
