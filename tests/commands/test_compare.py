"""``sdrt compare``: its output and exit code; a sound bundle passes and another checkpoint's does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import seal
from sdrt.artefacts.store import Store
from sdrt.compare import compare as comparing
from sdrt.compare import components, subject
from sdrt.compare.pictures import Pair
from sdrt.compare.prompts import PromptSeed
from sdrt.compare.schema import Comparison, FaultResult
from sdrt.compare.subject import SubjectRequest
from sdrt.engines import build as engines_build
from sdrt.errors import BackendUnavailableError
from tests.command_line import CommandLine, Ended
from tests.compare.comparisons import comparison, component, output

Compare = Callable[..., Ended]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Use one prompt."""
    path = tmp_path / "prompts.txt"
    path.write_text("3\ta red circle\n")
    return path


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[Comparison], list[tuple[SubjectRequest, Any]]]:
    """Return a function that sets the command's findings; it returns the list of requests."""

    def find(made: Comparison) -> list[tuple[SubjectRequest, Any]]:
        asked: list[tuple[SubjectRequest, Any]] = []

        def compare(what: SubjectRequest, how: Any, _progress: object) -> tuple[Comparison, tuple[Pair, ...]]:
            asked.append((what, how))
            black = Image.new("RGB", (64, 64))
            return made, tuple(Pair(PromptSeed(each.prompt, each.seed), black, black) for each in made.pictures)

        monkeypatch.setattr(comparing, "compare", compare)
        return asked

    return find


def test_what_passed_exits_0(sdrt: CommandLine, found: Any) -> None:
    asked = found(comparison())
    ended = sdrt("compare", "--backend", "openvino", "--precision", "bf16", "--steps", 7, "--bisect", "--threads", 2)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == (
        "passed: 2 of 2 components passed; 1 of 1 trajectory passed; 1 of 1 picture passed"
    )
    ((what, how),) = asked
    assert what == SubjectRequest(backend="openvino", precision="bf16")
    assert (how.steps, how.bisect, how.threads, how.prompts, how.tensors) == (7, True, 2, None, None)


def test_a_broken_tolerance_exits_5(sdrt: CommandLine, found: Any) -> None:
    broken = component("unet", output(1, "failed", "relative_l2 is 1; 0.001 is allowed"))
    found(comparison(outcome="failed", components=(broken,)))
    ended = sdrt("compare")
    assert ended.code == 5
    assert "failed: unet: relative_l2 is 1; 0.001 is allowed" in ended.out
    assert "the comparison failed: 0 of 1 component passed, 1 failed" in ended.complaint
    assert "--bisect" in ended.complaint


def test_nothing_verified_exits_4(sdrt: CommandLine, found: Any) -> None:
    nothing = component("unet", cases=(), outcome="unverified", reason="needs an NVIDIA driver")
    found(comparison(outcome="unverified", components=(nothing,), trajectories=(), pictures=()))
    ended = sdrt("compare")
    assert ended.code == 4
    assert "not verified: unet: needs an NVIDIA driver" in ended.out
    assert "nothing could be verified here: 0 of 1 component passed, 1 unverified" in ended.complaint


def test_json_is_the_comparison_and_says_what_moved(sdrt: CommandLine, found: Any, tmp_path: Path) -> None:
    found(comparison(bundle_digest="ef" * 32))
    earlier = tmp_path / "old.json"
    earlier.write_text(comparison().model_dump_json())
    ended = sdrt("compare", "--json", "--against", earlier, "--report", tmp_path / "deep" / "report")
    assert ended.code == 0
    written = Comparison.model_validate_json((tmp_path / "deep" / "report" / "comparison.json").read_bytes())
    assert Comparison.model_validate(ended.json) == written
    assert [(move.what, move.figure) for move in written.against.moved] == [("run", "bundle_digest")]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--save-tensors"], 2, "--save-tensors is for --report"),
        (["--steps", "0"], 2, "'0' is not a whole number from 1 to 1000"),
        (["--prompts", "nothing.txt"], 2, "--prompts: cannot read nothing.txt"),
        (["--tolerances", "nothing.toml"], 2, "--tolerances: cannot read nothing.toml"),
        (["--against", "nothing.json"], 3, "cannot read nothing.json"),
        (["--report", "file/report"], 2, "file is a file"),
        (["--report", "x" * 300], 2, "is not a usable path"),
        (["nowhere"], 3, "nowhere/manifest.json"),
        (["empty"], 3, "empty/manifest.json"),
        (["--trust", "ab" * 32], 2, "--trust is for engines"),
        (["--checkpoint", "nowhere"], 2, "'nowhere' does not exist"),
        (["empty", "--revision", "main"], 2, "--revision is for --checkpoint, which is missing"),
        (["nowhere", "--report", ".", "--save-tensors"], 2, "and tensors/mine was not saved by it"),
        (["--self-test", "--backend", "openvino"], 2, "--self-test does not go with --backend"),
        (["--self-test", "--precision", "bf16"], 2, "--self-test does not go with --precision"),
        (["--self-test", "--bisect"], 2, "--self-test does not go with --bisect"),
        (["--self-test", "--against", "file"], 2, "--self-test does not go with --against"),
        (["--self-test", "--report", "report"], 2, "--self-test does not go with --report"),
        (["--self-test", "--save-tensors"], 2, "--self-test does not go with --save-tensors"),
        (["--self-test", "--trust", "ab" * 32], 2, "--self-test does not go with --trust"),
        (["--self-test", "--threads", "1"], 2, "--self-test does not go with --threads"),
    ],
)
def test_what_is_asked_wrong_is_said_before_anything_is_run(
    words: list[str], code: int, said: str, sdrt: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "mine").touch()
    ended = sdrt("compare", "--store", tmp_path / "store", *words)
    assert (ended.code, said in ended.complaint) == (code, True), ended.err
    assert ended.out == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "file", "store", "tensors"}
    assert (tmp_path / "tensors" / "mine").exists()


def test_tensors_of_an_earlier_report_do_not_stay(sdrt: CommandLine, found: Any, tmp_path: Path) -> None:
    found(comparison())
    inputs = tmp_path / "tensors" / "unet" / "inputs.json"
    inputs.parent.mkdir(parents=True)
    inputs.touch()
    assert sdrt("compare", "--report", tmp_path, "--save-tensors").code == 0
    assert inputs.exists()
    assert sdrt("compare", "--report", tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "contact-sheet.png", "report.html"]
    mine = tmp_path / "tensors" / "mine"
    mine.parent.mkdir()
    mine.touch()
    assert sdrt("compare", "--report", tmp_path).code == 0
    assert mine.exists()


def test_planted_faults_that_are_missed_exit_5(sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(name: str, blamed: str | None) -> FaultResult:
        return FaultResult(name=name, found=bool(blamed), expected_component="unet", blamed_component=blamed)

    results = [fault("groupnorm-epsilon", "unet")]
    monkeypatch.setattr(comparing, "check_faults", lambda *_: tuple(results))
    ended = sdrt("compare", "--self-test")
    assert ended.code == 0
    assert " ".join(ended.out.split()) == "groupnorm-epsilon found blamed on unet; planted in unet"
    results += [fault("one", None), fault("two", "vae_decoder")]
    ended = sdrt("compare", "--self-test")
    assert ended.code == 5
    assert "planted faults were missed: one, two" in ended.complaint
    assert [line.split()[1] for line in ended.out.splitlines()] == ["found", "MISSED", "MISSED"]
    assert [each["name"] for each in sdrt("compare", "--self-test", "--json").json] == [
        "groupnorm-epsilon",
        "one",
        "two",
    ]


def test_a_sound_bundle_passes(
    sdrt: CommandLine, tiny_bundle: Bundle, tiny_path: Path, store: Store, prompts: Path, tmp_path: Path
) -> None:
    words: list[str | Path | int] = [
        "--backend",
        "onnxruntime",
        "--precision",
        "fp32",
        "--checkpoint",
        tiny_path,
        "--store",
        store.root,
    ]
    ended = sdrt("compare", tiny_bundle.path, *words, "--prompts", prompts, "--steps", 2, "--report", tmp_path / "r")
    assert ended.code == 0, ended.out + ended.err
    written = Comparison.model_validate_json((tmp_path / "r" / "comparison.json").read_bytes())
    assert [each.component for each in written.components] == [
        "text_encoder",
        "unet",
        "denoise_step",
        "vae_decoder",
        "vae_encoder",
    ]
    groups = (written.components, written.trajectories, written.pictures)
    assert {each.outcome for group in groups for each in group} == {"passed"}
    assert [(each.prompt, each.seed) for each in written.pictures] == [("a red circle", 3)]
    assert (written.steps, written.bundle_digest, written.compared_with.mismatch) == (2, tiny_bundle.digest, False)
    assert written.engines is not None
    assert "torch" in written.environment
    assert (tmp_path / "r" / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "report", "--save-tensors"], "--save-tensors needs a bundle"),
        (["--self-test"], "--self-test needs a bundle"),
    ],
)
def test_what_needs_graphs_is_not_asked_of_engines(
    options: list[str],
    said: str,
    sdrt: CommandLine,
    tiny_engines: Callable[..., EngineSet],
    tiny_path: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    engines = tiny_engines("onnxruntime", "fp32")
    ended = sdrt("compare", engines.path, "--checkpoint", tiny_path, "--store", store.root, *options)
    assert ended.code == 2
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_faults_are_planted_in_fp32_graphs_and_nothing_is_built(
    sdrt: CommandLine, tiny_bundle: Bundle, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[Bundle] = []
    monkeypatch.setattr(engines_build, "build", lambda *_: pytest.fail("engines are built"))
    monkeypatch.setattr(comparing, "_reference", lambda *_: SimpleNamespace(reference=None, inputs=None))

    def run_planted_faults(_: object, bundle: Bundle, *_others: object) -> tuple[FaultResult, ...]:
        tested.append(bundle)
        return ()

    monkeypatch.setattr(comparing, "run_planted_faults", run_planted_faults)
    words: list[str | Path | int] = ["--checkpoint", tiny_path, "--store", tmp_path / "store", "--self-test"]
    ended = sdrt("compare", tiny_bundle.path, *words, "--backend", "onnxruntime", "--precision", "fp32")
    assert ended.code == 0, ended.err
    assert tested == [tiny_bundle]
    half = tmp_path / "half"
    shutil.copytree(tiny_bundle.path, half)
    seal(half, tiny_bundle.manifest.model_copy(update={"precision": "fp16"}))
    ended = sdrt("compare", half, *words)
    assert ended.code == 2
    assert f"--self-test needs a bundle in fp32; {half} is in fp16" in ended.complaint
    assert tested == [tiny_bundle]


@pytest.mark.long
def test_another_checkpoint_fails_and_the_mismatch_is_said(
    sdrt: CommandLine,
    tiny_engines: Callable[..., EngineSet],
    checkpoint_path: Callable[[str], Path],
    store: Store,
    prompts: Path,
    tmp_path: Path,
) -> None:
    from tests.models import tiny_checkpoint

    engines = tiny_engines("onnxruntime", "fp32")
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    words: list[str | Path | int] = ["--checkpoint", other, "--store", store.root, "--prompts", prompts, "--steps", 2]
    ended = sdrt("compare", engines.path, *words, "--report", tmp_path / "report")
    assert ended.code == 5
    assert "warning: this was made from tiny; the digest of other differs" in ended.err
    written = json.loads((tmp_path / "report" / "comparison.json").read_bytes())
    assert written["compared_with"]["mismatch"]
    assert {each["outcome"] for each in written["components"]} == {"failed"}


@pytest.mark.long
def test_a_broken_tolerance_is_located(
    sdrt: CommandLine, tiny_bundle: Bundle, tiny_path: Path, store: Store, prompts: Path, tmp_path: Path
) -> None:
    from sdrt.compare.faults import FAULTS, plant

    faulty = plant(tiny_bundle, FAULTS["convolution-scaled"], tmp_path / "faulty")
    words: list[str | Path | int] = [
        "--checkpoint",
        tiny_path,
        "--store",
        tmp_path / "store",
        "--prompts",
        prompts,
        "--steps",
        2,
    ]
    ended = sdrt("compare", faulty.path, *words, "--backend", "onnxruntime", "--bisect")
    assert ended.code == 5
    assert "failed: unet: " in ended.out
    assert "unet first departs at " in ended.out
    assert ".conv2" in ended.out


@pytest.mark.long
def test_a_gpu_backend_is_unverified_with_stand_ins(
    sdrt: CommandLine,
    tiny_bundle: Bundle,
    tiny_path: Path,
    store: Store,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(backend: str) -> None:
        if backend == "tensorrt":
            raise BackendUnavailableError("needs an NVIDIA driver", hint="install one")

    # Simulates a machine without a GPU.
    for module in (subject, components):
        monkeypatch.setattr(module, "available", refuse)
    monkeypatch.setattr(comparing, "open_lpips", lambda: pytest.fail("a network is fetched for no picture"))
    words: list[str | Path | int] = [
        "--checkpoint",
        tiny_path,
        "--store",
        store.root,
        "--prompts",
        prompts,
        "--steps",
        2,
        "--json",
    ]
    ended = sdrt("compare", tiny_bundle.path, *words, "--backend", "tensorrt")
    assert ended.code == 4
    assert ended.json["outcome"] == "unverified"
    assert ended.json["pictures"] == []
    assert ended.json["environment"]["lpips"] == "not measured: no picture was drawn"
    assert all(each["proxies"] for each in ended.json["components"])


def test_the_reference_has_to_be_here(
    sdrt: CommandLine, tiny_bundle: Bundle, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Its place at export time is recorded, but it does not exist here.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engines_build, "build", lambda *_: pytest.fail("engines are built for nothing"))
    ended = sdrt("compare", tiny_bundle.path, "--store", store.root, "--backend", "onnxruntime")
    assert ended.code == 3
    assert "the checkpoint 'tiny', from which this was made, was not found" in ended.complaint
    assert "--checkpoint" in ended.complaint
