"""Rows 56 to 61, 63 and 64 of the fault matrix: NaN and Inf, blank pictures, failed comparisons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdrt.arrays import Array
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.checkpoint import open_checkpoint
from sdrt.compare.components import run_comparison
from sdrt.compare.faults import FAULTS, run_planted_faults
from sdrt.compare.inputs import Case, Inputs
from sdrt.compare.metrics import judge
from sdrt.compare.reference import Reference
from sdrt.compare.schema import ToleranceRecord
from sdrt.compare.tolerances import load
from sdrt.engines import self_test as self_test_of_engines
from sdrt.engines.builders import builder
from sdrt.errors import ArtefactError, NumericError, UsageError
from sdrt.export import export_bundle, quantised_bundle
from sdrt.export.activations import FP16_MAX
from sdrt.export.quantised_bundle import quantise_bundle
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.opening import open_engine
from sdrt.runtime.request import make_request
from sdrt.sampling.lms import Schedule
from tests.command_line import CommandLine, Ended
from tests.doubles.progress import Notes
from tests.doubles.runners import Canned
from tests.helpers.jobs import job
from tests.models.tiny_bundle import feeds

LOOSE = ToleranceRecord(relative_l2=0.5, peak=0.5, reason="half is allowed")
Draw = Callable[..., Ended]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the components that ran, in order."""
    seen: list[str] = []
    run = Engine.run

    def spy(engine: Engine, **given: Array) -> dict[str, Array]:
        seen.append(engine.name)
        return run(engine, **given)

    monkeypatch.setattr(Engine, "run", spy)
    return seen


@pytest.fixture
def draw(sdrt: CommandLine, bundle: Bundle, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Return a function that runs ``sdrt denoise`` on hand-written graphs, in an empty folder."""
    shutil.copytree(ready, tmp_path / "store")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words: str | Path | int) -> Ended:
        given = ("--bundle", bundle.path, "--backend", "onnxruntime", "--store", tmp_path / "store", "--no-build")
        return sdrt("denoise", *given, "--prompt", "a red circle", "--steps", 6, "--seed", 1, *words)

    return run


def spoil(monkeypatch: pytest.MonkeyPatch, component: str, value: float, run_number: int) -> None:
    """Put a value into a component's output on one of its runs, counted from 1."""
    run, done = Engine.run, [0]

    def spoiled(engine: Engine, **given: Array) -> dict[str, Array]:
        outputs = run(engine, **given)
        if engine.name == component:
            done[0] += 1
            if done[0] == run_number:
                next(iter(outputs.values())).flat[3] = value
        return outputs

    monkeypatch.setattr(Engine, "run", spoiled)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_row_56_nan_of_the_unet_names_component_step_and_sigma(
    draw: Draw, runs: list[str], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    spoil(monkeypatch, "unet", np.nan, step)
    ended = draw("--save-latents", "latents.npy")
    config = json.loads((bundle.path / "scheduler" / "scheduler_config.json").read_bytes())
    sigma = Schedule.from_config(config, 6).sigmas[step - 1]
    assert ended.code == 5
    assert f"unet gave 1 NaN and 0 Inf of 512 values at step {step} (sigma {sigma:.4g})" in ended.complaint
    assert runs.count("unet") == step
    assert "vae_decoder" not in runs
    assert list((tmp_path / "here").iterdir()) == []


def test_row_57_inf_of_the_decoder_is_not_tried_again(
    draw: Draw, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "vae_decoder", np.inf, 1)
    ended = draw()
    assert ended.code == 5
    assert "vae_decoder gave 0 NaN and 1 Inf" in ended.complaint
    assert "--precision fp32" in ended.complaint
    assert runs.count("vae_decoder") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_row_58_what_overflows_fp16_stays_fp32(tiny_path: Path, tmp_path: Path) -> None:
    """Use a layer's gain of 1e5, which the next reverses: right in fp32, and Inf on the way in fp16."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_path, folder)
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    first, second = (f"text_model.encoder.layers.0.mlp.{name}" for name in ("fc1", "fc2"))
    weights[f"{first}.bias"] = (weights[f"{first}.bias"] + 2.0) * 1e5
    weights[f"{first}.weight"] *= 1e5
    weights[f"{second}.weight"] /= 1e5
    save_file(weights, path, metadata={"format": "pt"})
    notes = Notes()
    exported = export_bundle(
        open_checkpoint(str(folder)), tmp_path / "out", precision="fp16", components=("text_encoder",), progress=notes
    )
    component = exported.manifest.components["text_encoder"]
    assert (exported.manifest.precision, component.precision) == ("fp16", "fp32")
    assert component.max_activation is not None
    assert component.max_activation > FP16_MAX == torch.finfo(torch.float16).max
    assert any(note.startswith("text_encoder stays fp32: its activations reach ") for note in notes.notes)


def test_row_59_a_picture_of_one_colour_is_said_to_be_one(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "degenerate_image" not in draw().err
    run = Engine.run

    def grey(engine: Engine, **given: Array) -> dict[str, Array]:
        outputs = run(engine, **given)
        return {name: np.zeros_like(value) for name, value in outputs.items()} if "vae" in engine.name else outputs

    monkeypatch.setattr(Engine, "run", grey)
    ended = draw("--out", "grey.png")
    assert (ended.code, ended.err.count("warning: degenerate_image: picture 1 has a single colour")) == (0, 1)
    assert (tmp_path / "here" / "grey.png").exists()


@pytest.fixture(scope="module")
def tiny_reference(tiny_path: Path) -> Reference:
    return Reference(open_checkpoint(str(tiny_path)))


def test_row_60_a_wrong_epsilon_fails_the_comparison(tiny_reference: Reference, tiny_bundle: Bundle) -> None:
    """Change it in each output of each component; the self-test first checks that a sound one passes."""
    trajectory = tiny_reference.denoise(make_request("a red circle", seed=0, num_inference_steps=4))
    inputs = Inputs(tiny_reference, trajectory, (1,))
    (found,) = run_planted_faults(tiny_reference, tiny_bundle, inputs, load(), names=("groupnorm-epsilon",))
    assert (found.found, found.expected_component, found.blamed_component) == (True, "unet", "unet")
    assert "groupnorm-epsilon" in FAULTS


def test_row_61_nothing_passes_that_cannot_be_compared() -> None:
    ones = np.ones((2, 3), np.float32)
    assert judge("y", ones, ones, LOOSE).outcome == "passed"
    for candidate, reference in (
        (np.full(3, np.nan), np.full(3, np.nan)),
        (np.ones((1, 3)), np.ones((2, 3))),
        (np.ones(0), np.ones(0)),
    ):
        assert judge("y", candidate, reference, LOOSE).outcome == "failed"
    case = Case("a case", 2, {"x": ones})
    (compared,) = run_comparison([Canned("torch", y=ones), Canned("engine", z=ones)], [case], LOOSE)
    assert [output.outcome for output in compared.outputs] == ["failed", "failed"]
    with pytest.raises(NumericError, match="compared outputs of 0 of 1 cases"):
        run_comparison([Canned("torch"), Canned("engine")], [case], LOOSE)


def test_row_63_fractional_timesteps_reach_the_unet_as_they_are(
    bundle: Bundle, ready: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = (ready / "engines" / "onnxruntime").iterdir()
    engines = EngineSet.open(folder, private_root=ready)
    given = feeds("unet", 2)
    with open_engine(engines, "unet") as unet, pytest.raises(UsageError, match="timestep is int64; it must be float32"):
        unet.run(**{**given, "timestep": given["timestep"].astype(np.int64)})
    fed: list[float] = []
    run = Engine.run

    def spy(engine: Engine, **given: Array) -> dict[str, Array]:
        fed.extend(given["timestep"][:1].tolist() if engine.name == "unet" else [])
        return run(engine, **given)

    monkeypatch.setattr(Engine, "run", spy)
    assert draw("--guidance-scale", "1").code == 0
    expected = Schedule.from_config({}, 6).timesteps.astype(np.float32)
    assert fed == expected.tolist()
    assert any(timestep % 1 for timestep in fed)


def test_row_63_what_a_scheduler_config_asks_for_is_done_or_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    plain = Schedule.from_config(config, 10)
    v_prediction = Schedule.from_config({**config, "prediction_type": "v_prediction"}, 10)
    assert (plain.prediction_type, v_prediction.prediction_type) == ("epsilon", "v_prediction")
    # steps_offset belongs to PNDM's timesteps; LMS with linspace does not use it.
    offset = Schedule.from_config({**config, "steps_offset": 1, "_class_name": "PNDMScheduler"}, 10)
    assert (offset.timesteps == plain.timesteps).all()
    for option, value in (("use_karras_sigmas", True), ("rescale_betas_zero_snr", True), ("beta_schedule", "cosine")):
        with pytest.raises(ArtefactError, match=option):
            Schedule.from_config({**config, option: value}, 10)
    with pytest.raises(ArtefactError, match="prediction_type"):
        Schedule.from_config({**config, "prediction_type": "sample"}, 10)


def test_row_64_int8_that_is_too_far_off_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse it where it is written and where it is compiled, instead of warning at every picture."""
    quantised = quantise_bundle(bundle, tmp_path / "int8")
    asked = job(quantised, "unet", tmp_path / "engines", backend="openvino", precision="int8")
    asked.folder.mkdir()
    assert builder("openvino").build(asked).precision == "int8"
    shutil.rmtree(asked.folder / "unet")
    monkeypatch.setattr(self_test_of_engines, "LIMIT", 1e-9)
    with pytest.raises(NumericError, match="unet computes int8 wrongly here: relative L2 error") as compiled:
        builder("openvino").build(asked)
    monkeypatch.setattr(quantised_bundle, "ERROR_LIMIT", 1e-9)
    with pytest.raises(NumericError, match="the int8 UNet changes a picture's latents by") as made:
        quantise_bundle(bundle, tmp_path / "refused")
    assert compiled.value.exit_code == made.value.exit_code == 5
    assert "bf16 or fp32" in made.value.hint
    assert not (tmp_path / "refused").exists()
