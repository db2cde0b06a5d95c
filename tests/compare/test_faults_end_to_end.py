"""Every planted fault through the whole command: it exits 5, and its report blames the right component."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.compare import compare as comparing
from sdrt.compare.components import blamed
from sdrt.compare.faults import FAULTS, plant
from sdrt.compare.inputs import Inputs
from sdrt.compare.prompts import PromptSeed
from sdrt.compare.reference import Reference
from sdrt.compare.schema import Comparison
from sdrt.runtime.request import make_request
from tests.command_line import CommandLine

PROMPT = PromptSeed("a red circle above a blue square", 5)
#: In six steps the oldest derivative weighs no more than rounding may.
STEPS = 12


@pytest.fixture(scope="module")
def reference_run(tiny_reference: Reference) -> comparing.ReferenceRun:
    """Run PyTorch's side, which is the same for every fault."""
    request = make_request(PROMPT.prompt, seed=PROMPT.seed, num_inference_steps=STEPS)
    trajectory = tiny_reference.denoise(request)
    return comparing.ReferenceRun(tiny_reference, (PROMPT,), trajectory, Inputs(tiny_reference, trajectory, (1, 2)))


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_the_report_of_a_planted_fault_blames_its_component(
    name: str,
    reference_run: comparing.ReferenceRun,
    sdrt: CommandLine,
    tiny_bundle: Bundle,
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparing, "_reference", lambda *_: reference_run)
    fault = FAULTS[name]
    faulty = plant(tiny_bundle, fault, tmp_path / "faulty")
    words: list[str | Path | int] = ["--checkpoint", tiny_path, "--store", tmp_path / "store", "--steps", STEPS]
    words += ["--backend", "onnxruntime", "--precision", "fp32", "--report", tmp_path / "report"]
    words += ["--bisect"] if fault.scaling_factor is not None else []
    ended = sdrt("compare", faulty.path, *words)
    assert ended.code == 5, ended.out + ended.err
    found = Comparison.model_validate_json((tmp_path / "report" / "comparison.json").read_bytes())
    assert (found.outcome, blamed(found.components)) == ("failed", fault.component)
    named = [line for line in ended.out.splitlines() if line.startswith("failed: ")]
    assert named[0].startswith(f"failed: {fault.component}: ")
    if fault.scaling_factor is not None:
        assert "the manifest's scaling_factor is 1, the checkpoint's is 0.18215" in named[0]
        assert "the engine compiled from it" not in named[0]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert f"{fault.component}: " in page[: page.index("<table")]
