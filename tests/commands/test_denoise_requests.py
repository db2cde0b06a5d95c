"""sdrt denoise beyond one prompt: initial pictures, prompt files, engines kept loaded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrt.pipeline import Pipeline
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.batches import PICTURES_AT_ONCE
from sdrt.runtime.images import write_png
from sdrt.runtime.picture_record import read_record
from sdrt.sampling.latents import unit_noise
from tests.command_line import Ended
from tests.models.tiny_bundle import LATENTS

Array = npt.NDArray[Any]
Denoise = Callable[..., Ended]


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Write an initial picture."""
    path = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


def made() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


def refused(ended: Ended, code: int, *named: str) -> None:
    assert ended.code == code, ended.err
    assert ended.out == ""
    for text in named:
        assert text in ended.complaint


# Pictures to start from.

DRAW = ("--prompt", "a red circle", "--steps", 5, "--seed", 3)


def test_a_picture_is_started_from(denoise: Denoise, start: Path) -> None:
    facts = denoise(*DRAW, "--init-image", start, "--strength", 0.6, "--json").json
    assert (facts["start_step"], facts["strength"], facts["num_inference_steps"]) == (2, 0.6, 5)
    assert list(facts["timings_s"]) == ["load", "vae_encoder", "text_encoder", "unet", "vae_decoder", "total"]
    assert made() == ["picture.png"]
    record = read_record(Path("picture.png"))
    assert (record["start_step"], record["lms_start"]) == (2, "diffusers")
    with Image.open("picture.png") as picture:
        assert "Denoising strength: 0.6" in picture.text["parameters"]  # type: ignore[attr-defined]
    # Its default is diffusers'.
    assert denoise(*DRAW, "--init-image", start, "--json").json["strength"] == 0.8
    # Without an initial picture there is no strength.
    facts = denoise(*DRAW, "--json").json
    assert (facts["start_step"], facts["strength"]) == (None, None)
    assert "vae_encoder" not in facts["timings_s"]


def test_start_step_and_lms_start_are_taken(denoise: Denoise, start: Path) -> None:
    words = (*DRAW, "--init-image", start, "--start-step", 1)
    pictures = []
    for more in ((), ("--lms-start", "fresh"), ("--lms-start", "diffusers")):
        assert denoise(*words, *more).code == 0
        assert read_record(Path("picture.png"))["start_step"] == 1
        with Image.open("picture.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_from_repeats_it_with_the_same_picture(denoise: Denoise, start: Path, tmp_path: Path) -> None:
    words = ("--num-images", 2, "--init-image", start, "--start-step", 2, "--lms-start", "fresh")
    assert denoise(*DRAW, *words).code == 0
    again = ("--from", "picture-0002.png", "--out", "again.png")
    ended = denoise(*again, "--init-image", start)
    assert ended.code == 0, ended.err
    assert Path("again.png").read_bytes() == Path("picture-0002.png").read_bytes()
    Path("again.png").unlink()
    refused(denoise(*again), 2, "started from a picture that it does not contain", "--init-image")
    other = tmp_path / "other.png"
    Image.new("RGB", (16, 16)).save(other)
    refused(denoise(*again, "--init-image", other), 3, "started from another picture")
    refused(denoise(*again, "--init-image", start, "--strength", 0.5), 2, "--strength and --from exclude")
    assert made() == ["picture-0001.png", "picture-0002.png"]


def test_from_refuses_a_picture_where_none_was(denoise: Denoise, start: Path) -> None:
    assert denoise(*DRAW).code == 0
    ended = denoise("--from", "picture.png", "--out", "again.png", "--init-image", start)
    refused(ended, 2, "was not started from a picture")


def test_from_refuses_what_was_stopped(denoise: Denoise) -> None:
    assert denoise(*DRAW).code == 0
    record = read_record(Path("picture.png")) | {"stopped_after": 3}
    with Image.open("picture.png") as picture:
        write_png(picture, Path("stopped.png"), record)
    refused(denoise("--from", "stopped.png", "--out", "again.png"), 2, "was stopped after 3 of 5 steps")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--strength", 0.5), 2, "--strength is for --init-image, which is missing"),
        (("--start-step", 0), 2, "--start-step is for --init-image"),
        (("--lms-start", "fresh"), 2, "--lms-start is for --init-image"),
        (("--init-image", "START", "--strength", 0.5, "--start-step", 1), 2, "--strength and --start-step exclude"),
        (("--init-image", "START", "--strength", 0), 2, "above 0 and up to 1"),
        (("--init-image", "START", "--strength", 1.5), 2, "--strength"),
        (("--init-image", "START", "--strength", "nan"), 2, "--strength"),
        (("--init-image", "START", "--strength", 0.1), 2, "leaves none of 5 steps"),
        (("--init-image", "START", "--start-step", 5), 2, "start_step is 5; it must be a whole number, 0 to 4"),
        (("--init-image", "START", "--start-step", -1), 2, "--start-step"),
        (("--init-image", "absent.png"), 3, "absent.png is not a file"),
        (("--init-image", "."), 3, "is not a file"),
    ],
    ids=lambda value: "",
)
def test_what_is_wrong_is_named_before_anything_runs(
    words: tuple[Any, ...],
    code: int,
    named: str,
    denoise: Denoise,
    start: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pipeline, "load", None)
    refused(denoise(*DRAW, *(start if word == "START" else word for word in words)), code, named)
    assert made() == []


# Files of prompts.


def write_lines(*lines: dict[str, Any] | str) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("prompts.jsonl").write_text("\n".join(text))


def test_every_line_is_drawn(denoise: Denoise) -> None:
    two = {"prompt": "a blue square", "num_images_per_prompt": 2, "num_inference_steps": 3}
    write_lines({"prompt": "a red circle"}, two, "", {"prompt": "a star", "seed": 40})
    ended = denoise("--prompts", "prompts.jsonl", "--steps", 2, "--seed", 7, "--out", "drawn.png")
    assert ended.code == 0, ended.err
    names = ["drawn-0001.png", "drawn-0002-0001.png", "drawn-0002-0002.png", "drawn-0004.png"]
    # In the order of completion: lines of equal settings together.
    assert ended.out.splitlines() == [names[0], names[3], names[1], names[2]]
    assert made() == [*names, "prompts.jsonl"]
    said = [(record["prompt"], record["seed"]) for record in map(read_record, map(Path, names))]
    assert said == [("a red circle", 7), ("a blue square", 8), ("a blue square", 9), ("a star", 40)]


def test_json_maps_pictures_to_lines(denoise: Denoise) -> None:
    long = "circle " * 20
    write_lines({"prompt": "a"}, {"prompt": long, "num_inference_steps": 3}, {"prompt": "c"})
    facts = denoise("--prompts", "prompts.jsonl", "--steps", 2, "--seed", 7, "--json").json
    assert [(image["line"], image["path"], image["seed"]) for image in facts["images"]] == [
        (1, "picture-0001.png", 7),
        (2, "picture-0002.png", 8),
        (3, "picture-0003.png", 9),
    ]
    assert [bool(image["truncated"]) for image in facts["images"]] == [False, True, False]
    assert facts["failed"] == []
    assert facts["pictures_per_minute"] > 0
    assert facts["timings_s"]["total"] >= facts["timings_s"]["unet"] > 0


def test_a_seed_is_drawn_for_the_file_and_said(denoise: Denoise) -> None:
    write_lines({"prompt": "a"}, {"prompt": "b", "seed": 3}, {"prompt": "c"})
    drawn = set()
    for _ in range(3):
        ended = denoise("--prompts", "prompts.jsonl", "--steps", 1)
        seeds = [read_record(Path(f"picture-000{line}.png"))["seed"] for line in (1, 2, 3)]
        assert seeds == [seeds[0], 3, seeds[0] + 2]
        assert f"seeds count up from {seeds[0]} where lines give none" in ended.err
        drawn.add(seeds[0])
    assert len(drawn) > 1


def test_what_the_user_may_not_expect_is_said_by_line(denoise: Denoise, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines({"prompt": "circle " * 20}, {"prompt": "a", "seed": 3})
    assert (
        "warning: line 1, seed 7: the prompt was truncated; cut off: 'circle"
        in denoise("--prompts", "prompts.jsonl", "--steps", 1, "--seed", 7).err
    )
    run = Engine.run

    def grey(engine: Engine, **feeds: Array) -> dict[str, Array]:
        return {name: array * 0 for name, array in run(engine, **feeds).items()}

    monkeypatch.setattr(Engine, "run", grey)
    said = denoise("--prompts", "prompts.jsonl", "--steps", 1).err
    assert "warning: degenerate_image: line 2, seed 3: the picture has a single colour" in said


def test_a_picture_of_a_file_is_repeated_bit_for_bit(denoise: Denoise) -> None:
    write_lines({"prompt": "a"}, {"prompt": "b", "negative_prompt": "c"})
    assert denoise("--prompts", "prompts.jsonl", "--steps", 2).code == 0
    assert denoise("--from", "picture-0002.png", "--out", "again.png").code == 0
    assert Path("again.png").read_bytes() == Path("picture-0002.png").read_bytes()


def test_a_picture_that_was_written_is_let_go_of(denoise: Denoise, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(*({"prompt": f"{number}"} for number in range(5 * PICTURES_AT_ONCE)))
    monkeypatch.setattr("sdrt.runtime.picture_queue.GROUPS_A_RUN", 1)
    pictures: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def write(image: Image.Image, path: Path, record: Any) -> None:
        pictures.append(weakref.ref(image))
        alive.append(sum(picture() is not None for picture in pictures))
        write_png(image, path, record)

    monkeypatch.setattr("sdrt.runtime.images.write_png", write)
    assert denoise("--prompts", "prompts.jsonl", "--steps", 1, "--seed", 0).code == 0
    assert len(alive) == 5 * PICTURES_AT_ONCE
    # The pictures of the current run, and one that is still being returned.
    assert max(alive) <= PICTURES_AT_ONCE + 1


@pytest.mark.parametrize("count", [1, 2])
def test_latents_of_the_models_own_size_go_out_and_come_in(denoise: Denoise, count: int) -> None:
    np.save("noise.npy", unit_noise(range(count), LATENTS))
    words = ("--prompt", "a", "--steps", 2, "--seed", 0, "--num-images", count)
    assert denoise(*words, "--latents", "noise.npy", "--save-latents", "final.npy", "--out", "given.png").code == 0
    final = np.load("final.npy")
    assert (final.shape, final.dtype) == ((count, *LATENTS), np.float32)
    # The noise of the seeds, given as a file: the same latents.
    assert denoise(*words, "--save-latents", "drawn.npy", "--out", "drawn.png").code == 0
    np.testing.assert_array_equal(np.load("drawn.npy"), final)
    # Saved latents can be given.
    assert denoise(*words, "--latents", "final.npy", "--out", "again.png").code == 0


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 3, 8, 8), (4, 8, 9), (1, 4, 9, 8)])
def test_latents_of_another_models_size_are_refused(denoise: Denoise, shape: tuple[int, ...]) -> None:
    np.save("noise.npy", np.zeros(shape, np.float32))
    ended = denoise("--prompt", "a", "--latents", "noise.npy")
    refused(ended, 3, "noise.npy: latents have shape", "this model's is (1, 4, 8, 8)")
    assert made() == ["noise.npy"]


def test_a_wrong_line_is_named_and_nothing_is_made(denoise: Denoise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "load", None)
    write_lines({"prompt": "a"}, {"prompt": "b", "steps": 7}, "c")
    ended = denoise("--prompts", "prompts.jsonl")
    refused(ended, 2, "prompts.jsonl, line 2: there is no field 'steps'", "1 more are wrong: 3")
    Path("picture-0001.png").mkdir()
    write_lines({"prompt": "a"})
    refused(denoise("--prompts", "prompts.jsonl"), 2, "picture-0001.png is a folder")
    refused(denoise("--prompts", "absent.jsonl"), 2, "cannot read absent.jsonl")


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "a"),
        ("--from", "picture.png"),
        ("--latents", "latents.npy"),
        ("--save-latents", "latents.npy"),
        ("--preview",),
        ("--preview-dir", "previews"),
    ],
    ids=lambda words: words[0],
)
def test_what_does_not_go_with_a_file_of_prompts(words: tuple[str, ...], denoise: Denoise) -> None:
    write_lines({"prompt": "a"})
    refused(denoise("--prompts", "prompts.jsonl", *words), 2, f"--prompts and {words[0]} exclude each other")


def test_pictures_at_fault_are_named_and_the_others_written(denoise: Denoise, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines({"prompt": "a"}, {"prompt": "b", "guidance_scale": 2}, {"prompt": "c"})
    run = Engine.run
    calls = []

    def broken(engine: Engine, **feeds: Array) -> dict[str, Array]:
        """Return NaN in the second run of the UNet: that of line 2, whose guidance differs."""
        outputs = run(engine, **feeds)
        if engine.name == "unet":
            calls.append(len(feeds["sample"]))
            if calls[-1] == 2:
                outputs["out_sample"][...] = np.nan
        return outputs

    monkeypatch.setattr(Engine, "run", broken)
    ended = denoise("--prompts", "prompts.jsonl", "--steps", 1, "--seed", 5, "--json")
    assert ended.code == 5
    assert "1 of 3 pictures failed, in lines 2" in ended.complaint
    assert "line 2, seed 6: unet gave " in ended.err
    facts = ended.json
    assert [image["line"] for image in facts["images"]] == [1, 3]
    assert [(failed["line"], failed["seed"]) for failed in facts["failed"]] == [(2, 6)]
    assert made() == ["picture-0001.png", "picture-0003.png", "prompts.jsonl"]


def test_lines_start_from_a_picture_too(denoise: Denoise, start: Path) -> None:
    write_lines({"prompt": "a"}, {"prompt": "b", "num_inference_steps": 4})
    ended = denoise("--prompts", "prompts.jsonl", "--init-image", start, "--strength", 0.5, "--steps", 2)
    assert ended.code == 0, ended.err
    assert [read_record(Path(f"picture-000{line}.png"))["start_step"] for line in (1, 2)] == [1, 2]


# Engines that stay.


def test_engines_are_let_go_of_unless_kept(denoise: Denoise, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    close = Engine.close

    def closing(engine: Engine) -> None:
        closed.append(engine.name)
        close(engine)

    def running(*arguments: Any, **named: Any) -> Any:
        result = run(*arguments, **named)
        closed.append("the run ends")
        return result

    run = Pipeline.run
    monkeypatch.setattr(Engine, "close", closing)
    monkeypatch.setattr(Pipeline, "run", running)
    assert denoise(*DRAW).code == 0
    assert closed == ["text_encoder", "unet", "vae_decoder", "the run ends"]
    without = Path("picture.png").read_bytes()
    closed.clear()
    assert denoise(*DRAW, "--keep-loaded").code == 0
    assert closed[0] == "the run ends"
    assert Path("picture.png").read_bytes() == without
