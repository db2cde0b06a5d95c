"""The loop over denoise_step: equal to the plain loop on both CPU backends, also for pictures at different steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrt import Pipeline
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BackendName, BatchRange, EngineSet
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.engines.build import build_to
from sdrt.engines.request import BuildRequest
from sdrt.errors import EngineError, NumericError, UsageError
from sdrt.progress import silent
from sdrt.runtime import denoise as loops
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.opening import open_engine
from sdrt.runtime.denoise import Conditioning, Latents, denoise, denoise_fused, step_rows
from sdrt.runtime.request import make_request
from sdrt.sampling.lms import Schedule
from tests.helpers.fixtures import Sets
from tests.helpers.latents import conditioning, difference, noise
from tests.models.tiny_bundle import LATENTS

Array = npt.NDArray[Any]

STEPS = 25
#: Required: relative to the largest latent, after 25 steps. The loops differ by the rounding of a few fp32
#: operations a step.
TOLERANCE = 1e-5
#: fp16 weights and states, fp32 arithmetic in ONNX Runtime: the UNet's inputs are rounded to 11 bits in both loops,
#: and inputs whose last fp32 bit differs may round the other way; guidance 7.5 amplifies that.
FP16_TOLERANCE = 2e-2
#: Least difference of a wrong loop: a hundred tolerances.
WRONG = 1e-3
ALL: tuple[ComponentName, ...] = (*COMPONENTS, "denoise_step")


@pytest.fixture
def sets(hand_sets: Sets) -> Sets:
    """Return a function that builds engine sets with denoise_step."""

    def make(*arguments: Any, **named: Any) -> EngineSet:
        return hand_sets(*arguments, **{"components": ALL, **named})

    return make


def schedule_of(engines: EngineSet, steps: int = STEPS) -> Schedule:
    return Schedule.from_config(json.loads(engines.scheduler.read_bytes()), steps)


def both(engines: EngineSet, count: int) -> tuple[Latents, Latents]:
    """Return final latents of the fused and of the plain loop."""
    schedule = schedule_of(engines)
    start, prompts = noise(schedule, count), conditioning(count)
    with open_engine(engines, "denoise_step") as step, open_engine(engines, "unet") as unet:
        fused = denoise_fused(step, schedule, start.copy(), prompts)
        return fused, denoise(unet, schedule, start.copy(), prompts)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_equals_the_plain_loop(sets: Sets, backend: BackendName, prediction_type: str, count: int) -> None:
    assert difference(*both(sets(backend, "fp32", prediction_type), count)) < TOLERANCE


def test_it_equals_the_plain_loop_in_fp16(sets: Sets) -> None:
    engines = sets("onnxruntime", "fp16")
    fused, plain = both(engines, 2)
    assert difference(fused, plain) < FP16_TOLERANCE
    # The contract: fp32 outside, fp16 where the UNet takes hidden states; the loop casts.
    dtypes = {spec.name: spec.dtype for spec in engines.component("denoise_step").inputs}
    assert dtypes.pop("uncond_states") == dtypes.pop("cond_states") == "float16"
    assert set(dtypes.values()) == {"float32"}
    # fp16 weights make a difference, so the comparison above is not of identical engines.
    assert difference(fused, both(sets("onnxruntime", "fp32"), 2)[0]) > TOLERANCE


def reversed_coefficients(rows: dict[str, Array]) -> None:
    rows["lms_coefficients"] = rows["lms_coefficients"][:, ::-1]


def next_sigma(rows: dict[str, Array]) -> None:
    rows["sigma"] = rows["sigma"] * np.float32(0.9)


def weaker_guidance(rows: dict[str, Array]) -> None:
    rows["guidance_scale"] = rows["guidance_scale"] - np.float32(0.5)


def other_timestep(rows: dict[str, Array]) -> None:
    rows["timestep"] = rows["timestep"] + np.float32(100)


@pytest.mark.parametrize("spoil", [reversed_coefficients, next_sigma, weaker_guidance, other_timestep])
def test_wrong_rows_are_seen(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, Array]], None]
) -> None:
    def spoiled(*arguments: Any) -> dict[str, Array]:
        rows = step_rows(*arguments)
        spoil(rows)
        return rows

    monkeypatch.setattr(loops, "step_rows", spoiled)
    # The hand-made UNet normalises its sample, so only v_prediction depends on the sigma.
    assert difference(*both(sets("onnxruntime", "fp32", "v_prediction"), 1)) > WRONG


def test_exchanged_halves_are_seen(sets: Sets) -> None:
    engines = sets()
    schedule, right = schedule_of(engines), conditioning(2)
    assert right.negative_prompt_embeds is not None
    wrong = Conditioning(right.negative_prompt_embeds, right.prompt_embeds, 7.5)
    with open_engine(engines, "denoise_step") as step:
        results = [denoise_fused(step, schedule, noise(schedule, 2), prompts) for prompts in (wrong, right)]
    assert difference(results[0], results[1]) > WRONG


class Unshifted(Engine):
    """A denoise_step that returns its history unchanged but for the newest entry."""

    def __init__(self, step: Engine) -> None:
        super().__init__(step.name, step.spec)
        self.step = step

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        outputs = self.step.run(**feeds)
        outputs["next_history"] = np.concatenate([outputs["next_history"][:, :1], feeds["history"][:, 1:]], axis=1)
        return outputs

    def release(self) -> None:
        self.step.close()


def test_a_history_that_is_not_shifted_is_seen(sets: Sets) -> None:
    engines = sets()
    schedule = schedule_of(engines)
    with open_engine(engines, "denoise_step") as step:
        right = denoise_fused(step, schedule, noise(schedule, 1), conditioning(1))
        wrong = denoise_fused(Unshifted(step), schedule, noise(schedule, 1), conditioning(1))
    assert difference(wrong, right) > WRONG


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_pictures_at_different_steps_share_a_batch(sets: Sets, backend: str) -> None:
    """Let picture i join at tick 4 i and leave when done; each must end as if alone in the plain loop."""
    engines = sets(backend)
    schedule, count = schedule_of(engines), 3
    start, prompts = noise(schedule, count), conditioning(count)
    assert prompts.negative_prompt_embeds is not None
    latents, history = start.copy(), np.zeros((count, 4, *LATENTS), np.float32)
    with open_engine(engines, "denoise_step") as step:
        for tick in range(STEPS + 4 * (count - 1)):
            at = [tick - 4 * i for i in range(count)]
            rows = [i for i in range(count) if 0 <= at[i] < STEPS]
            outputs = step.run(
                latents=latents[rows],
                history=history[rows],
                uncond_states=prompts.negative_prompt_embeds[rows],
                cond_states=prompts.prompt_embeds[rows],
                **step_rows(schedule, [at[i] for i in rows], 7.5),
            )
            latents[rows], history[rows] = outputs["next_latents"], outputs["next_history"]
    with open_engine(engines, "unet") as unet:
        for i in range(count):
            own = Conditioning(prompts.prompt_embeds[i : i + 1], prompts.negative_prompt_embeds[i : i + 1], 7.5)
            alone = denoise(unet, schedule, start[i : i + 1].copy(), own)
            assert difference(latents[i : i + 1], alone) < TOLERANCE
            others = np.delete(np.arange(count), i)
            assert min(difference(latents[j : j + 1], alone) for j in others) > WRONG


def test_rows_hold_each_pictures_own_step(sets: Sets) -> None:
    schedule = schedule_of(sets())
    rows = step_rows(schedule, [7, 0], 3.0)
    assert {name: values.shape for name, values in rows.items()} == {
        "timestep": (2,),
        "sigma": (2,),
        "guidance_scale": (2,),
        "lms_coefficients": (2, 4),
    }
    assert {str(values.dtype) for values in rows.values()} == {"float32"}
    np.testing.assert_array_equal(rows["timestep"], schedule.timesteps[[7, 0]].astype(np.float32))
    np.testing.assert_array_equal(rows["sigma"], schedule.sigmas[[7, 0]].astype(np.float32))
    assert rows["lms_coefficients"][0].all()
    assert rows["lms_coefficients"][1].tolist() == [np.float32(schedule.coefficients[0, 0]), 0, 0, 0]


def test_the_callback_sees_changes_and_stops(sets: Sets) -> None:
    engines = sets()
    schedule = schedule_of(engines, 6)
    seen: list[tuple[int, float]] = []

    def halve_then_stop(step: int, timestep: float, latents: Latents) -> Latents | None:
        seen.append((step, timestep))
        return None if step == 3 else latents * np.float32(0.5)

    with open_engine(engines, "denoise_step") as step, open_engine(engines, "unet") as unet:
        fused = denoise_fused(step, schedule, noise(schedule, 1), conditioning(1), halve_then_stop)
        assert seen == [(i, schedule.timesteps[i]) for i in range(4)]
        plain = denoise(unet, schedule, noise(schedule, 1), conditioning(1), halve_then_stop)
    assert difference(fused, plain) < TOLERANCE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_stop_it_and_name_the_step(sets: Sets, bad: float) -> None:
    engines = sets()
    schedule = schedule_of(engines, 6)

    def spoil(step: int, _timestep: float, latents: Latents) -> Latents:
        latents[0, 2, 3, 4] = bad if step == 1 else latents[0, 2, 3, 4]
        return latents

    with (
        open_engine(engines, "denoise_step") as step,
        pytest.raises(NumericError, match=r"denoise_step gave .* at step 3 \(sigma"),
    ):
        denoise_fused(step, schedule, noise(schedule, 1), conditioning(1), spoil)


def test_it_does_not_run_without_guidance(sets: Sets) -> None:
    engines = sets()
    unguided = Conditioning(conditioning(1).prompt_embeds, None, 1.0)
    with open_engine(engines, "denoise_step") as step, pytest.raises(UsageError, match="with guidance only"):
        denoise_fused(step, schedule_of(engines), noise(schedule_of(engines), 1), unguided)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """List component and rows of every run of a denoising engine."""
    seen: list[tuple[str, int]] = []
    run = Engine.run

    def spy(engine: Engine, **feeds: Array) -> dict[str, Array]:
        if engine.name in ("unet", "denoise_step"):
            seen.append((engine.name, len(next(iter(feeds.values())))))
        return run(engine, **feeds)

    monkeypatch.setattr(Engine, "run", spy)
    return seen


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the opened components, in order."""
    names: list[str] = []
    original = Engine.__init__

    def spy(engine: Engine, name: ComponentName, spec: Any) -> None:
        names.append(name)
        original(engine, name, spec)

    monkeypatch.setattr(Engine, "__init__", spy)
    return names


def test_the_pipeline_runs_guided_steps_by_it(sets: Sets, ran: list[tuple[str, int]]) -> None:
    with Pipeline(sets()) as pipe, Pipeline(sets(), loop="plain") as plain:
        arguments: dict[str, Any] = {"seed": 3, "num_inference_steps": 5, "negative_prompt": "blue"}
        fused = pipe(["a red circle", "a green star"], **arguments)
        assert ran == [("denoise_step", 2)] * 5
        ran.clear()
        expected = plain(["a red circle", "a green star"], **arguments)
        assert ran == [("unet", 4)] * 5
        assert pipe.denoiser(fused.request) == "denoise_step"
        assert plain.denoiser(expected.request) == "unet"
    assert difference(fused.latents, expected.latents) < TOLERANCE
    assert len(fused.timings.steps) == len(expected.timings.steps) == 5
    assert fused.timings.unet_s_per_step > 0


def test_without_guidance_the_plain_unet_runs(sets: Sets, ran: list[tuple[str, int]]) -> None:
    with Pipeline(sets()) as pipe:
        pipe("a red circle", seed=0, num_inference_steps=2, guidance_scale=1.0)
    assert ran == [("unet", 1)] * 2


def test_only_what_a_request_needs_is_opened(sets: Sets, opened: list[str]) -> None:
    with Pipeline(sets()) as pipe:
        assert opened == ["text_encoder", "vae_decoder"]
        opening_s = pipe.load_s
        first = pipe("a red circle", seed=0, num_inference_steps=2)
        assert opened == ["text_encoder", "vae_decoder", "denoise_step"]
        # Opening it is part of the load, and not of the steps.
        assert first.timings.load > opening_s
        unguided = pipe("a red circle", seed=0, num_inference_steps=2, guidance_scale=0.0)
        assert opened[3:] == ["unet"]
        assert unguided.timings.load > 0
        again = pipe("a red circle", seed=0, num_inference_steps=2)
        assert len(opened) == 4
        assert again.timings.load < min(first.timings.load, unguided.timings.load)


def test_a_set_without_it_opens_the_unet_at_once(sets: Sets, opened: list[str], ran: list[tuple[str, int]]) -> None:
    with Pipeline(sets(components=COMPONENTS)) as pipe:
        assert opened == ["text_encoder", "unet", "vae_decoder"]
        pipe("a red circle", seed=0, num_inference_steps=2)
    assert ran == [("unet", 2)] * 2


def test_the_plain_loop_needs_the_unet(sets: Sets) -> None:
    engines = sets(components=("text_encoder", "denoise_step", "vae_decoder"))
    with pytest.raises(EngineError, match="holds no unet"):
        Pipeline(engines, loop="plain")
    with Pipeline(engines) as pipe:
        pipe("a red circle", seed=0, num_inference_steps=1)
        with pytest.raises(EngineError, match="holds no unet"):
            pipe("a red circle", seed=0, num_inference_steps=1, guidance_scale=1.0)


@pytest.mark.parametrize(
    ("batch", "fused", "guided", "unguided"),
    [
        (None, 4, 4, 4),
        (BatchRange(min=1, opt=1, max=1), 1, 1, 2),
        (BatchRange(min=1, opt=1, max=4), 4, 4, 4),
        (BatchRange(min=1, opt=8, max=16), 8, 8, 16),
        (BatchRange(min=5, opt=6, max=7), 6, 6, 12),
    ],
)
def test_as_many_pictures_go_at_once_as_the_engine_is_fastest_for(
    sets: Sets, batch: BatchRange | None, fused: int, guided: int, unguided: int
) -> None:
    engines = sets(batch=batch)
    request = make_request("a", seed=0)
    with Pipeline(engines) as pipe, Pipeline(engines, loop="plain") as plain:
        assert pipe.pictures_at_once(request) == fused
        assert plain.pictures_at_once(request) == guided
        assert plain.pictures_at_once(make_request("a", seed=0, guidance_scale=1.0)) == unguided


def test_sixteen_pictures_fill_engines_that_are_fastest_for_eight(sets: Sets, ran: list[tuple[str, int]]) -> None:
    with Pipeline(sets(batch=BatchRange(min=1, opt=8, max=16))) as pipe:
        result = pipe("a red circle", seed=0, num_inference_steps=1, num_images_per_prompt=18)
    assert ran == [("denoise_step", 8), ("denoise_step", 8), ("denoise_step", 2)]
    assert [record["seed"] for record in result.records] == list(range(18))


def test_records_name_the_loop_that_ran(sets: Sets) -> None:
    with Pipeline(sets()) as pipe, Pipeline(sets(), loop="plain") as plain:
        arguments: dict[str, Any] = {"seed": 0, "num_inference_steps": 1}
        assert pipe("a", **arguments).records[0]["loop"] == "fused"
        assert pipe("a", guidance_scale=1.0, **arguments).records[0]["loop"] == "plain"
        assert plain("a", **arguments).records[0]["loop"] == "plain"


def test_its_batch_counts_pictures(sets: Sets, ran: list[tuple[str, int]]) -> None:
    engines = sets(batch=BatchRange(min=1, opt=2, max=2))
    with Pipeline(engines) as pipe:
        result = pipe("a red circle", seed=0, num_inference_steps=2, num_images_per_prompt=3)
    assert ran == [("denoise_step", 2)] * 2 + [("denoise_step", 1)] * 2
    assert len(result.timings.steps) == 4


def test_fp16_graphs_draw_pictures(sets: Sets) -> None:
    with Pipeline(sets("onnxruntime", "fp16")) as pipe, Pipeline(sets("onnxruntime", "fp16"), loop="plain") as plain:
        fused = pipe("a red circle", seed=0, num_inference_steps=5)
        expected = plain("a red circle", seed=0, num_inference_steps=5)
    assert fused.latents.dtype == np.float32
    assert difference(fused.latents, expected.latents) < FP16_TOLERANCE
    assert fused.images[0].size == (16, 16)


def test_an_unknown_loop_is_refused(sets: Sets) -> None:
    with pytest.raises(UsageError, match="loop is 'fast'"):
        Pipeline(sets(), loop="fast")


@pytest.mark.long
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_equals_the_plain_loop_on_an_exported_checkpoint(
    tiny_bundle: Bundle, tmp_path: Path, backend: BackendName
) -> None:
    request = BuildRequest(backend, "fp32", ("unet", "denoise_step"))
    engines = build_to(tiny_bundle, request, tmp_path / "engines", silent)
    schedule, model = schedule_of(engines), engines.manifest.model
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        shape = (count, model.latent_channels, model.latent_size, model.latent_size)
        start = rng.standard_normal(shape, np.float32) * np.float32(schedule.init_noise_sigma)
        states = rng.standard_normal((2, count, model.max_tokens, model.hidden_size), np.float32)
        prompts = Conditioning(states[0], states[1], 7.5)
        with open_engine(engines, "denoise_step") as step:
            fused = denoise_fused(step, schedule, start.copy(), prompts)
        with open_engine(engines, "unet") as unet:
            plain = denoise(unet, schedule, start.copy(), prompts)
        assert difference(fused, plain) < TOLERANCE
        assert difference(fused, start) > WRONG
