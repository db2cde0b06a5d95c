"""A pipeline that is kept: after many requests nothing has grown, and each request's seconds are its own."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrt import Pipeline
from sdrt import pipeline as pipeline_module
from sdrt.artefacts.manifest import COMPONENTS, DEEPCACHE, ComponentName
from sdrt.errors import NumericError
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.picture_queue import run_queue
from sdrt.runtime.prompt_file import Line
from sdrt.runtime.request import make_request
from sdrt.runtime.result import Timings
from tests.doubles.cuda_double.plans import double_set
from tests.doubles.cuda_double.rig import Rig
from tests.helpers.fixtures import Sets
from tests.models.tiny_bundle import tiny_bundle as write_bundle

ROUNDS = 8
#: One object kept in each round would grow by the number of rounds.
MOST_GROWTH = ROUNDS - 1


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """Exclude objects from before the test: in a whole run those are millions."""
    gc.freeze()
    yield
    gc.unfreeze()


def sizes() -> dict[str, int]:
    """Return the collector's objects by type, and the total length of all built-in containers by type."""
    gc.collect()
    found: Counter[str] = Counter()
    modules = [module for name, module in sys.modules.items() if name.startswith("sdrt")]
    for each in [*gc.get_objects(), *(value for module in modules for value in vars(module).values())]:
        kind = type(each)
        found[kind.__qualname__] += 1
        if kind in (list, dict, set, deque):
            found[f"in {kind.__qualname__}"] += len(each)
    return dict(found)


def growth(ask: Callable[[int], object]) -> dict[str, int]:
    """Return growth of more than `MOST_GROWTH` over `ROUNDS` calls after the first two, which warm up."""
    for number in range(2):
        ask(number)
    before = sizes()
    for number in range(2, 2 + ROUNDS):
        ask(number)
    after = sizes()
    return {
        kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] - before.get(kind, 0) > MOST_GROWTH
    }


def ask_in_every_way(pipe: Pipeline, number: int, *, deepcache: bool = False) -> None:
    """Draw pictures in every way, with other prompts and seeds for each number."""
    settings: dict[str, Any] = {"seed": number, "num_inference_steps": 3}
    prompt, picture = f"a red circle {number}", Image.new("RGB", (16, 16), (number, 40, 40))
    pipe(prompt, negative_prompt=f"dark {number}", callback_on_step_end=lambda *_: None, **settings)
    pipe(prompt, guidance_scale=1.0, image=picture, **settings)
    pipe([prompt, "a"], guidance_interval=(0.5, 4.0), **settings)
    if deepcache:
        pipe(prompt, deepcache=2, **settings)


@pytest.mark.parametrize(
    ("backend", "more", "keep_loaded"),
    [
        ("onnxruntime", ("denoise_step",), True),
        ("onnxruntime", DEEPCACHE, False),
        ("openvino", DEEPCACHE, True),
    ],
)
def test_nothing_grows_with_requests(hand_sets: Sets, backend: str, more: tuple[str, ...], keep_loaded: bool) -> None:
    with Pipeline(hand_sets(backend, components=(*COMPONENTS, *more)), keep_loaded=keep_loaded) as pipe:
        assert growth(lambda number: ask_in_every_way(pipe, number, deepcache=more == DEEPCACHE)) == {}


@pytest.mark.parametrize("rtx", [False, True])
def test_nothing_grows_with_requests_on_the_doubles_of_a_gpu(
    tmp_path: Path, rtx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: tuple[ComponentName, ...] = ("text_encoder", "denoise_step", "unet", "vae_encoder", "vae_decoder")
    engines = double_set(write_bundle(tmp_path / "bundle"), tmp_path / "double", components=held)
    rig = Rig(engines, rtx=rtx)
    monkeypatch.setattr(pipeline_module, "open_session", lambda *_, **__: rig.session)

    def ask(number: int) -> None:
        ask_in_every_way(pipe, number)
        # The double keeps a list of all calls.
        rig.cuda.calls.clear()

    with Pipeline(engines) as pipe:
        assert growth(ask) == {}


@pytest.mark.parametrize("in_a_module", [True, False])
def test_a_list_of_every_runs_seconds_would_be_seen(
    hand_sets: Sets, monkeypatch: pytest.MonkeyPatch, in_a_module: bool
) -> None:
    """Keep a float for each run, in an instance and in a module's global: the control must find both."""
    kept: list[float] = []
    if in_a_module:
        gc.freeze()
        monkeypatch.setattr(pipeline_module, "kept", kept, raising=False)
    run = Engine.run

    def keeping(engine: Engine, **feeds: Any) -> Any:
        outputs = run(engine, **feeds)
        kept.append(engine.last_s)
        return outputs

    monkeypatch.setattr(Engine, "run", keeping)
    with Pipeline(hand_sets()) as pipe:
        assert set(growth(lambda number: pipe("a circle", seed=number, num_inference_steps=3))) == {"in list"}


# Seconds.


def ask(pipe: Pipeline, **settings: Any) -> Timings:
    return pipe("a red circle", **{"seed": 0, "num_inference_steps": 3, **settings}).timings


def decode(pipe: Pipeline, _step: int, _timestep: float, tensors: dict[str, Any]) -> None:
    pipe.decode(tensors["latents"])


@pytest.fixture
def slow_opening(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pipeline], None]:
    """Make a pipeline's clock report a thousand seconds for opening an engine, and real times otherwise."""

    def slow(pipe: Pipeline) -> None:
        opens, passed, clock = pipe._session._open_engine, [0.0], time.perf_counter

        def opening(name: Any) -> Engine:
            passed[0] += 1000.0
            return opens(name)

        monkeypatch.setattr(pipe._session, "_open_engine", opening)
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + passed[0])

    return slow


def test_the_first_request_counts_the_opening_and_the_second_its_own(hand_sets: Sets) -> None:
    with Pipeline(hand_sets()) as pipe:
        pipe.load_s = 5000.0
        first, second = ask(pipe), ask(pipe, num_inference_steps=2)
    assert 5000 <= first.load < first.total < 5100
    assert second.load < 100
    for timings, steps in ((first, 3), (second, 2)):
        assert len(timings.steps) == steps
        parts = (timings.load, timings.text_encoder, timings.unet, timings.vae_decoder)
        assert sum(parts) <= timings.total


def test_a_request_counts_what_it_opens_and_the_next_does_not(
    hand_sets: Sets, slow_opening: Callable[[Pipeline], None]
) -> None:
    with Pipeline(hand_sets(components=(*COMPONENTS, "denoise_step"))) as pipe:
        slow_opening(pipe)
        first, unguided, again = ask(pipe), ask(pipe, guidance_scale=1.0), ask(pipe)
    for opening in (first, unguided):
        assert 1000 <= opening.load < opening.total < 1100
        assert opening.unet < 100
    assert again.total < 100


def test_what_a_callback_opens_is_load_and_no_step(hand_sets: Sets, slow_opening: Callable[[Pipeline], None]) -> None:
    with Pipeline(hand_sets(), keep_loaded=False) as pipe:
        slow_opening(pipe)
        timings = ask(pipe, callback_on_step_end=decode)
        assert 3000 <= timings.load < timings.total < 3100
        assert timings.unet < 100
        # Engines opened between requests count for no request.
        pipe.decode(pipe("a", seed=0, num_inference_steps=1).latents)
        assert 2000 <= ask(pipe).load < 2100


def test_a_request_that_fails_leaves_the_opening_to_the_next(hand_sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline(hand_sets()) as pipe:
        pipe.load_s = 5000.0
        with monkeypatch.context() as patch:
            patch.setattr(
                pipeline_module, "encode_texts", lambda *_: (_ for _ in ()).throw(NumericError("no", hint=""))
            )
            with pytest.raises(NumericError):
                ask(pipe)
        assert ask(pipe).load > 5000
        assert ask(pipe).load < 100


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_a_queue_adds_up_what_its_runs_took(hand_sets: Sets, keep_loaded: bool) -> None:
    lines = [Line(steps, make_request("a", seed=0, num_inference_steps=steps)) for steps in (1, 2, 3)]
    timings = Timings()
    with Pipeline(hand_sets(), keep_loaded=keep_loaded) as pipe:
        pipe.load_s = 5000.0
        assert len(list(run_queue(pipe, lines, timings))) == 3
    assert 5000 <= timings.load < timings.total < 5100
