"""callback_on_step_end: it reads and changes latents, decodes them, and stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sdrt import Pipeline
from sdrt.artefacts.manifest import COMPONENTS
from tests.helpers.fixtures import Sets

STEPS = 6
#: Steps before the run is stopped.
DONE = 3


@pytest.fixture(scope="module", params=["plain", "auto"])
def pipe(hand_sets: Sets, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Open a pipeline whose guided steps run by the UNet, and one that runs denoise_step."""
    components = COMPONENTS if request.param == "plain" else (*COMPONENTS, "denoise_step")
    with Pipeline(hand_sets(components=components), loop=request.param) as opened:
        yield opened


def stop_after(steps: int, give: Any = None) -> Callable[..., Any]:
    def callback(pipe: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> Any:
        if step + 1 == steps:
            pipe.stop()
            return give(values["latents"]) if give else None
        return None

    return callback


def test_a_run_that_is_stopped_gives_what_it_had(pipe: Pipeline) -> None:
    kept: list[Any] = []

    def keep(_pipe: Pipeline, _step: int, _timestep: float, values: dict[str, Any]) -> None:
        kept.append(values["latents"].copy())

    whole = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=keep)
    stopped = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=stop_after(DONE))
    assert (stopped.latents == kept[DONE - 1]).all()
    assert (stopped.stopped_after, len(stopped.timings.steps)) == (DONE, DONE)
    assert (whole.stopped_after, len(whole.timings.steps)) == (None, STEPS)
    assert stopped.records[0]["stopped_after"] == DONE
    assert whole.records[0]["stopped_after"] is None
    assert stopped.images[0].tobytes() == pipe.decode(kept[DONE - 1])[0].tobytes()


def test_the_last_change_counts_where_it_stops(pipe: Pipeline) -> None:
    halve = stop_after(DONE, lambda latents: {"latents": latents / 2})
    halved = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=halve)
    stopped = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=stop_after(DONE))
    assert (halved.latents == stopped.latents / 2).all()


def test_pictures_that_were_not_begun_are_missing(pipe: Pipeline) -> None:
    count = pipe.pictures_at_once(pipe("a", seed=0, num_inference_steps=1).request)
    callback = stop_after(1)
    result = pipe(
        "a red circle", seed=0, num_inference_steps=2, num_images_per_prompt=count + 1, callback_on_step_end=callback
    )
    assert len(result.images) == len(result.records) == len(result.latents) == len(result.truncated) == count
    assert len(result.request.pictures) == count + 1


def test_pictures_that_were_whole_say_nothing_of_the_stop(pipe: Pipeline) -> None:
    steps: list[int] = []

    def stop_in_the_second_group(given: Pipeline, step: int, _timestep: float, _values: Any) -> None:
        steps.append(step)
        if len(steps) == 2 + 1:
            given.stop()

    arguments: dict[str, Any] = {"seed": 0, "num_inference_steps": 2, "num_images_per_prompt": 6}
    result = pipe("a red circle", callback_on_step_end=stop_in_the_second_group, **arguments)
    assert [record["stopped_after"] for record in result.records] == [None] * 4 + [1] * 2
    at_the_last = pipe("a red circle", seed=0, num_inference_steps=2, callback_on_step_end=stop_after(2))
    assert at_the_last.stopped_after == 2
    assert at_the_last.records[0]["stopped_after"] is None


def test_the_next_run_is_whole_again(pipe: Pipeline) -> None:
    pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=stop_after(1))
    again = pipe("a red circle", seed=0, num_inference_steps=STEPS)
    assert (again.stopped_after, len(again.timings.steps)) == (None, STEPS)


def test_a_callback_decodes_by_the_pipeline(pipe: Pipeline) -> None:
    pictures: list[Any] = []

    def decode(given: Pipeline, step: int, _timestep: float, values: dict[str, Any]) -> None:
        pictures.append(given.decode(values["latents"])[0])

    result = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=decode)
    assert len(pictures) == STEPS
    assert pictures[-1].tobytes() == result.images[0].tobytes()
    assert pictures[0].tobytes() != result.images[0].tobytes()
    assert (result.latents == pipe("a red circle", seed=0, num_inference_steps=STEPS).latents).all()


def test_latents_of_a_callback_may_be_of_another_floating_type(pipe: Pipeline) -> None:
    def double(_pipe: Pipeline, _step: int, _timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"].astype(np.float64)}

    result = pipe("a red circle", seed=0, num_inference_steps=STEPS, callback_on_step_end=double)
    assert (result.latents == pipe("a red circle", seed=0, num_inference_steps=STEPS).latents).all()
