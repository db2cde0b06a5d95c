"""The search for the fastest accurate configuration, with made-up times and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from sdrt.artefacts.tuned import Trial, find_record, record_path
from sdrt.bench import tune as module
from sdrt.bench.contender import Job, Ran, Work
from sdrt.bench.tune import LEAST_SAVING, TuneSettings, tune
from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.prepare.choice import build_request, choose
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from tests.command_line import CommandLine
from tests.doubles.progress import Notes

SETTINGS = TuneSettings(rounds=2, backends=("openvino", "onnxruntime"), precisions=("fp32", "bf16"), threads=4)


@dataclass(frozen=True)
class Made:
    """A double of an engine set: the settings it was built for."""

    path: str
    precision: str


class World:
    """A machine where each configuration takes as long as ``seconds`` says, and some give wrong results."""

    def __init__(self) -> None:
        self.seconds: Callable[[str, Job], float] = lambda path, job: 1.0
        self.wrong: set[str] = set()
        self.built: list[str] = []

    def build(self, _bundle: Bundle, request: Any, _store: Any, _progress: Any) -> Made:
        step = "step" if request.components else "default"
        batch = request.batch.opt if request.batch else "any"
        self.built.append(f"{request.backend}-{request.precision}-{step}-{batch}")
        return Made(self.built[-1], request.precision)

    def judge(self, engines: Made, **_: Any) -> tuple[bool, str]:
        if engines.path in self.wrong:
            return False, "failed: PSNR 9.0 dB is below 30 dB"
        return True, "latents within 1e-06 of PyTorch"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    class Process:
        def __init__(self, job: Job, _cache: str) -> None:
            self._job = job

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, _work: Work) -> Ran:
            return Ran(total=made.seconds(self._job.engines, self._job))

    class Judge:
        judge = staticmethod(made.judge)

    monkeypatch.setattr(module, "Process", Process)
    monkeypatch.setattr(module, "Judge", lambda *_: Judge)
    monkeypatch.setattr(module, "find_checkpoint", lambda *_: None)
    monkeypatch.setattr(module, "available", lambda _: None)
    monkeypatch.setattr("sdrt.engines.build.build", made.build)
    monkeypatch.setattr("sdrt.engines.builders.openvino.supports_bf16", lambda: True)
    return made


def names(trials: tuple[Trial, ...]) -> list[str]:
    return [trial.name for trial in trials]


def test_the_fastest_of_every_question_is_kept(world: World, step_bundle: Bundle, tmp_path: Path) -> None:
    def seconds(path: str, job: Job) -> float:
        return {"fp32": 3.0, "bf16": 2.0}[job.precision] - ("-step" in path) * 0.5 + (job.threads == 2) * 0.1

    world.seconds = seconds
    record = tune(Source(bundle=step_bundle.path), SETTINGS, tmp_path / "store")
    assert names(record.trials) == [
        "openvino fp32, plain loop, any batch, 4 threads",
        "openvino bf16, plain loop, any batch, 4 threads",
        "onnxruntime fp32, plain loop, any batch, 4 threads",
        "openvino bf16, fused loop, any batch, 4 threads",
        "openvino bf16, fused loop, batch 1, 4 threads",
        "openvino bf16, fused loop, any batch, 2 threads",
    ]
    assert [trial.kept for trial in record.trials] == [False, True, False, True, False, False]
    assert record.best is record.trials[3]
    assert record.trials[3].why.startswith("0.75 times as long as openvino bf16, plain loop")
    assert record.trials[4].times_as_long == 1
    assert all(len(trial.seconds) == SETTINGS.rounds for trial in record.trials)


def test_what_is_not_accurate_drops_out_however_fast(world: World, step_bundle: Bundle, tmp_path: Path) -> None:
    world.seconds = lambda path, job: 0.1 if job.precision == "bf16" else 1.0
    world.wrong = {"openvino-bf16-default-any"}
    record = tune(Source(bundle=step_bundle.path), SETTINGS, tmp_path / "store")
    dropped = record.trials[0]
    assert (dropped.name, dropped.accurate) == ("openvino bf16, plain loop, any batch, 4 threads", False)
    assert dropped.why == "failed: PSNR 9.0 dB is below 30 dB"
    assert record.best is not None
    assert record.best.precision == "fp32"
    # The control: were it accurate, it would be kept.
    world.wrong = set()
    again = tune(Source(bundle=step_bundle.path), SETTINGS, tmp_path / "store")
    assert again.best is not None
    assert again.best.precision == "bf16"


def test_a_saving_that_may_be_chance_keeps_the_simpler_way(world: World, step_bundle: Bundle, tmp_path: Path) -> None:
    world.seconds = lambda path, job: 1 - (LEAST_SAVING / 2 if "-step" in path else 0)
    record = tune(Source(bundle=step_bundle.path), SETTINGS, tmp_path / "store")
    assert record.best is record.trials[0]


def test_where_nothing_is_accurate_nothing_is_kept(world: World, hand_bundle: Bundle, tmp_path: Path) -> None:
    world.judge = lambda engines, **_: (False, "failed: nothing is right")  # type: ignore[method-assign]
    module_judge = type("Judge", (), {"judge": staticmethod(world.judge)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Judge", lambda *_: module_judge)
        record = tune(Source(bundle=hand_bundle.path), SETTINGS, tmp_path / "store")
    assert record.best is None
    assert record.reason == "no candidate is accurate"
    assert len(record.trials) == 3


def test_one_thread_has_no_half_and_a_bundle_without_the_step_one_loop(
    world: World, hand_bundle: Bundle, tmp_path: Path
) -> None:
    settings = TuneSettings(rounds=1, backends=("onnxruntime",), precisions=("fp32",), threads=1)
    record = tune(Source(bundle=hand_bundle.path), settings, tmp_path / "store")
    assert names(record.trials) == [
        "onnxruntime fp32, plain loop, any batch, 1 threads",
        "onnxruntime fp32, plain loop, batch 1, 1 threads",
    ]


def test_auto_follows_the_record_and_says_so(world: World, step_bundle: Bundle, tmp_path: Path) -> None:
    source, store = Source(bundle=step_bundle.path), tmp_path / "store"
    before = choose(source, store=store)
    assert before.threads is None
    world.seconds = lambda path, job: (
        (0.5 if path.startswith("onnxruntime-fp32-step") else 1.0) * (1 if job.threads == 4 else 0.5)
    )
    settings = TuneSettings(rounds=1, backends=("onnxruntime",), precisions=("fp32",), threads=4)
    tune(source, settings, store)
    notes = Notes()
    choice = choose(source, store=store, progress=notes)
    assert (choice.backend, choice.precision, choice.threads, choice.fused) == ("onnxruntime", "fp32", 2, True)
    assert "denoise_step" in (build_request(choice, step_bundle).components or ())
    (first, second) = notes.notes
    assert first.startswith("backend onnxruntime: tuned here on 20")
    assert second == "as tuned: onnxruntime fp32, fused loop, any batch, 2 threads"
    # The user's options override the record; for another precision the machine's defaults apply.
    assert choose(source, store=store, threads=1).threads == 1
    assert choose(source, store=store, loop="plain").fused is False
    assert choose(source, store=store, backend="openvino").threads is None
    assert choose(source, store=store, precision="bf16").threads is None
    assert find_record(store, "00" * 32) is None


def test_prepare_builds_what_was_tuned(
    world: World, step_bundle: Bundle, tmp_path: Path, built_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = Source(bundle=step_bundle.path), tmp_path / "store"
    world.seconds = lambda path, job: 0.5 if "-step" in path else 1.0
    settings = TuneSettings(rounds=1, backends=("onnxruntime",), precisions=("fp32",), threads=1)
    tune(source, settings, store)
    monkeypatch.undo()
    engines = prepare(source, choose(source, store=store), store=store)
    assert engines.manifest.backend == "onnxruntime"
    assert "denoise_step" in engines.manifest.components


def test_engines_cannot_be_tuned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="built already"):
        tune(Source(engines=tmp_path), SETTINGS)


def test_without_a_backend_nothing_can_be_tuned(
    world: World, hand_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(backend: str) -> None:
        raise BackendUnavailableError(f"{backend} is not installed", hint="install it")

    monkeypatch.setattr(module, "available", refuse)
    notes = Notes()
    with pytest.raises(BackendUnavailableError, match="no backend can run here"):
        tune(Source(bundle=hand_bundle.path), SETTINGS, tmp_path / "store", notes)
    assert notes.notes == [
        "openvino is left out: openvino is not installed",
        "onnxruntime is left out: onnxruntime is not installed",
    ]


def test_the_command_says_what_was_kept_and_why(
    world: World, hand_bundle: Bundle, tmp_path: Path, sdrt: CommandLine
) -> None:
    words = ("tune", hand_bundle.path, "--backend", "onnxruntime", "--store", tmp_path / "store", "--threads", 1)
    ended = sdrt(*words)
    assert ended.code == 0, ended.err
    best, other, follows = ended.out.splitlines()
    assert best.startswith("best  onnxruntime fp32, plain loop, any batch, 1 threads: 1.000 s a request at best")
    assert other.startswith("      onnxruntime fp32, plain loop, batch 1, 1 threads: 1.00 times as long")
    assert "--backend auto runs tiny as onnxruntime fp32" in follows
    assert sdrt(*words, "--json").json["trials"][0]["kept"] is True


def test_the_command_fails_where_nothing_is_accurate(
    world: World, hand_bundle: Bundle, tmp_path: Path, sdrt: CommandLine
) -> None:
    world.wrong = {"onnxruntime-fp32-default-any"}
    ended = sdrt("tune", hand_bundle.path, "--backend", "onnxruntime", "--store", tmp_path / "store")
    assert ended.code == 5
    assert "no candidate is accurate enough" in ended.complaint


@pytest.mark.long
def test_tuning_a_checkpoint_with_pytorch_as_the_judge(tiny_path: Path, store: Store, sdrt: CommandLine) -> None:
    """Run the whole command: two loops, a fixed batch, and the record in use."""
    words = ("--checkpoint", tiny_path, "--store", store.root)
    tuned = sdrt("tune", *words, "--backend", "onnxruntime", "--rounds", 2, "--steps", 2, "--threads", 1, "--json")
    assert tuned.code == 0, tuned.err
    trials = tuned.json["trials"]
    assert [(trial["loop"], trial["batch"]) for trial in trials][:2] == [("plain", None), ("fused", None)]
    assert all(trial["accurate"] for trial in trials)
    drawn = sdrt("denoise", *words, "--prompt", "a circle", "--steps", 2, "--out", store.root.parent / "tuned.png")
    assert drawn.code == 0, drawn.err
    assert "backend onnxruntime: tuned here on" in drawn.err
    record_path(store.root, tuned.json["bundle_digest"]).unlink()
