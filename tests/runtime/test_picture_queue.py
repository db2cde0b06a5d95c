"""The queue: merged into batches, every picture at its line, and only those at fault are lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.batches import PICTURES_AT_ONCE
from sdrt.runtime.picture_queue import GROUPS_A_RUN, Finished, plan_runs, run_queue
from sdrt.runtime.prompt_file import Line
from sdrt.runtime.request import make_request
from sdrt.runtime.result import Timings
from sdrt.sampling.latents import unit_noise
from tests.helpers.fixtures import Sets
from tests.models.tiny_bundle import LATENTS

Array = npt.NDArray[Any]

#: A picture's levels may differ by one where the last bit of a latent, which its batch decides, rounds the other way.
LEVELS = 1


@pytest.fixture(scope="module")
def pipe(hand_sets: Sets) -> Iterator[Pipeline]:
    with Pipeline(hand_sets()) as opened:
        yield opened


def line(number: int, prompt: str = "a red circle", steps: int = 2, **arguments: Any) -> Line:
    return Line(number, make_request(prompt, **{"seed": number, "num_inference_steps": steps, **arguments}))


def finish(pipe: Pipeline, lines: list[Line], timings: Timings | None = None, **arguments: Any) -> list[Finished]:
    return list(run_queue(pipe, lines, timings or Timings(), **arguments))


def test_lines_of_equal_settings_go_together(pipe: Pipeline) -> None:
    lines = [line(1), line(2, steps=3), line(3, "a blue square", negative_prompt="dark"), line(5, steps=3), line(6)]
    runs = plan_runs(pipe, lines)
    assert [[slot.line for slot in run.slots] for run in runs] == [[1, 3, 6], [2, 5]]
    assert [run.request.num_inference_steps for run in runs] == [2, 3]
    for run in runs:
        assert [slot.picture for slot in run.slots] == list(run.request.pictures)


def test_runs_are_as_large_as_suits_the_engines(pipe: Pipeline, hand_sets: Sets) -> None:
    lines = [line(number) for number in range(1, 41)]
    assert [len(run.slots) for run in plan_runs(pipe, lines)] == [PICTURES_AT_ONCE] * 10
    with Pipeline(hand_sets(), keep_loaded=False) as releasing:
        sizes = [len(run.slots) for run in plan_runs(releasing, lines)]
    assert sizes == [PICTURES_AT_ONCE * GROUPS_A_RUN, 40 - PICTURES_AT_ONCE * GROUPS_A_RUN]


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_every_picture_is_what_its_line_alone_gives(hand_sets: Sets, keep_loaded: bool) -> None:
    lines = [
        line(1, "a red circle"),
        line(2, "a blue square", steps=3, num_images_per_prompt=2),
        line(4, "a green star", guidance_scale=1.0),
        line(5, "a blue square", negative_prompt="red"),
        line(7, "a star " * 20),
    ]
    with Pipeline(hand_sets(), keep_loaded=keep_loaded) as pipe:
        finished = {(done.slot.line, done.slot.index): done for done in finish(pipe, lines)}
        assert list(finished) == [(1, 0), (5, 0), (7, 0), (2, 0), (2, 1), (4, 0)]
        for each in lines:
            alone = pipe.run(each.request)
            for index, expected in enumerate(alone.images):
                done = finished[each.number, index]
                assert done.image is not None
                assert done.record is not None
                difference = np.abs(np.asarray(done.image, np.int16) - np.asarray(expected, np.int16)).max()
                assert difference <= LEVELS
                assert done.truncated == alone.truncated[index]
                assert done.record["seed"] == each.request.pictures[index].seed == each.number + index
                assert done.record["prompt"] == each.request.pictures[index].prompt
    # The control: pictures of other lines are other pictures.
    assert finished[1, 0].image.tobytes() != finished[5, 0].image.tobytes()  # type: ignore[union-attr]
    assert finished[7, 0].truncated


def test_records_repeat_the_batch(pipe: Pipeline) -> None:
    finished = finish(pipe, [line(1), line(2, steps=3), line(3, "a blue square")])
    record = next(done.record for done in finished if done.slot.line == 3)
    assert record is not None
    assert record["batch"] == [["a red circle", "", 1], ["a blue square", "", 3]]
    assert record["batch_index"] == 1


def test_only_pictures_at_fault_are_lost(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line(number, f"{number}") for number in range(1, 8)]
    expected = finish(pipe, lines)
    poisoned = unit_noise([3, 6], LATENTS)
    run = Engine.run

    def broken(engine: Engine, **feeds: Array) -> dict[str, Array]:
        """Return NaN for the rows that start from the noise of seed 3 or 6."""
        outputs = run(engine, **feeds)
        if engine.name == "unet":
            rows = feeds["sample"].reshape(len(feeds["sample"]), -1)
            for noise in poisoned.reshape(len(poisoned), -1):
                cosines = rows @ noise / np.linalg.norm(rows, axis=1) / np.linalg.norm(noise)
                outputs["out_sample"][cosines > 0.99] = np.nan
        return outputs

    monkeypatch.setattr(Engine, "run", broken)
    finished = finish(pipe, lines)
    assert sorted(done.slot.line for done in finished) == list(range(1, 8))
    assert {done.slot.line for done in finished if done.error is not None} == {3, 6}
    for done in finished:
        if done.error is not None:
            assert (done.image, done.record) == (None, None)
            assert done.error.message.startswith("unet gave ")
            continue
        (whole,) = (each for each in expected if each.slot == done.slot)
        assert done.image is not None
        assert whole.image is not None
        assert np.abs(np.asarray(done.image, np.int16) - np.asarray(whole.image, np.int16)).max() <= LEVELS


def test_a_picture_to_start_from_holds_for_all(pipe: Pipeline) -> None:
    start = Image.new("RGB", (16, 16), (250, 10, 10))
    lines = [line(1, steps=4, strength=0.5), line(2, steps=6, strength=0.5)]
    records = [done.record for done in finish(pipe, lines, image=start)]
    assert [record["start_step"] for record in records if record is not None] == [2, 3]
    assert len({record["init_image"] for record in records if record is not None}) == 1


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_timings_are_those_of_all_runs(hand_sets: Sets, keep_loaded: bool) -> None:
    timings = Timings()
    with Pipeline(hand_sets(), keep_loaded=keep_loaded) as pipe:
        opened_s = pipe.load_s
        finish(pipe, [line(1), line(2, steps=3), line(3, steps=4)], timings)
    assert len(timings.steps) == 9
    assert timings.load >= opened_s
    assert timings.load + timings.text_encoder + timings.unet + timings.vae_decoder <= timings.total


def test_pictures_come_as_soon_as_they_are_done(pipe: Pipeline) -> None:
    timings = Timings()
    finished = run_queue(pipe, [line(1), line(2, steps=3)], timings)
    assert next(finished).slot.line == 1
    assert len(timings.steps) == 2
    assert [done.slot.line for done in finished] == [2]
