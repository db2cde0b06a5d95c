"""The comparison by components: results that never pass, unverified results, and the tiny checkpoint's engines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from sdrt.arrays import Array
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName, TensorSpec
from sdrt.compare import components
from sdrt.compare.components import blamed, compare_components, run_comparison
from sdrt.compare.inputs import Case, Inputs
from sdrt.compare.reference import Reference
from sdrt.compare.runners import Candidate, candidate
from sdrt.compare.schema import ComponentResult, Outcome, ToleranceRecord
from sdrt.compare.tolerances import Tolerances, load
from sdrt.errors import BackendUnavailableError, NumericError
from tests.doubles.runners import Canned
from tests.helpers.fixtures import Engines

LOOSE = ToleranceRecord(relative_l2=0.5, peak=0.5, reason="half is allowed")
ONES = np.ones((2, 3), np.float32)
CASE = Case("a case, batch 2", 2, {"x": ONES})


def outcomes(expected: dict[str, Array], actual: dict[str, Array]) -> list[tuple[str, Outcome, str]]:
    (case,) = run_comparison([Canned("torch", **expected), Canned("engine", **actual)], [CASE], LOOSE)
    assert (case.label, case.batch) == (CASE.label, 2)
    return [(output.output, output.outcome, output.reason) for output in case.outputs]


def test_what_is_within_its_tolerance_passes() -> None:
    assert outcomes({"y": ONES}, {"y": ONES * np.float32(1.4)}) == [("y", "passed", "")]


@pytest.mark.parametrize(
    ("expected", "actual", "reason"),
    [
        (ONES, ONES * 1.6, "relative_l2 is 0.6; 0.5 is allowed"),
        (ONES * np.nan, ONES * np.nan, "NaN"),
        (ONES * np.inf, ONES * np.inf, "Inf"),
        (ONES, ONES[:, :1], "shape"),
        (ONES, ONES[0], "shape"),
        (ONES[:0], ONES[:0], "empty"),
    ],
)
def test_what_never_passes(expected: Array, actual: Array, reason: str) -> None:
    ((_, outcome, found),) = outcomes({"y": expected}, {"y": actual})
    assert outcome == "failed"
    assert reason in found


def test_outputs_of_one_side_only_fail() -> None:
    found = outcomes({"y": ONES, "z": ONES}, {"y": ONES, "w": ONES})
    assert found[0] == ("y", "passed", "")
    assert found[1:] == [
        ("z", "failed", "the candidate has no such output"),
        ("w", "failed", "the reference has no such output"),
    ]


def test_no_outputs_at_all_are_no_comparison() -> None:
    with pytest.raises(NumericError, match="compared outputs of 0 of 1 cases"):
        outcomes({}, {})


def test_every_case_is_compared() -> None:
    cases = [CASE, replace(CASE, label="another")]
    found = run_comparison([Canned("torch", y=ONES), Canned("engine", y=ONES)], cases, LOOSE)
    assert [case.label for case in found] == ["a case, batch 2", "another"]


@dataclass
class Tiny:
    """The tiny checkpoint's text encoder in PyTorch and as the bundle's graph; small enough to run often."""

    reference: Reference
    inputs: Inputs
    bundle: Bundle

    def compare(self, source: Any, tolerances: Tolerances | None = None, **options: Any) -> ComponentResult:
        table = tolerances or load()
        names: tuple[ComponentName, ...] = ("text_encoder",)
        (result,) = compare_components(self.reference, source, self.inputs, table, components=names, **options)
        return result


@pytest.fixture
def tiny(tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle) -> Tiny:
    return Tiny(tiny_reference, tiny_inputs, tiny_bundle)


def test_a_sound_graph_passes_at_every_batch(tiny: Tiny) -> None:
    result = tiny.compare(tiny.bundle)
    assert (result.outcome, result.reason, result.backend, result.precision) == ("passed", "", "onnxruntime", "fp32")
    assert [case.batch for case in result.cases] == [1, 2]
    limit = load().of("text_encoder", "onnxruntime", "fp32")
    assert result.cases[0].outputs[0].tolerance == limit


def test_the_reference_of_another_checkpoint_fails(tiny: Tiny, tiny_bundle: Bundle) -> None:
    tiny.reference = _Shifted(tiny.reference.checkpoint)
    result = tiny.compare(tiny_bundle)
    assert result.outcome == "failed"
    assert result.reason.startswith("prompts 1, batch 1: last_hidden_state: relative_l2 is ")
    assert blamed([result]) == "text_encoder"


class _Shifted(Reference):
    def run(self, *arguments: Any) -> dict[str, Array]:
        return {name: array + np.float32(1e-3) for name, array in super().run(*arguments).items()}


def changed(made: Candidate, **fields: Any) -> Candidate:
    """Return the candidate with its text encoder's record changed."""
    part = made.parts["text_encoder"].model_copy(update=fields)
    return replace(made, parts={**made.parts, "text_encoder": part})


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec(name="ids", dtype="int64", shape=("batch", 77)),
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", 7, 11)),
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", 76)),
    ],
)
def test_inputs_are_neither_renamed_nor_reshaped_to_fit(tiny: Tiny, spec: TensorSpec) -> None:
    result = tiny.compare(changed(candidate(tiny.bundle), inputs=(spec,)))
    assert result.outcome == "failed"
    assert "the contract says {'input_ids': (77,)}" in result.reason


def test_without_a_row_in_the_table_it_is_unverified(tiny: Tiny) -> None:
    result = tiny.compare(tiny.bundle, Tolerances({}))
    assert result.outcome == "unverified"
    assert "no tolerance is known" in result.reason
    assert result.cases[0].outputs[0].metrics is not None


def test_what_is_not_held_is_unverified(tiny: Tiny) -> None:
    made = replace(candidate(tiny.bundle), parts={})
    assert (tiny.compare(made).outcome, tiny.compare(made).reason) == (
        "unverified",
        "the engines hold no text_encoder",
    )


def gpu_missing(_backend: str) -> None:
    raise BackendUnavailableError("tensorrt needs an NVIDIA GPU", hint="")


def test_a_backend_that_cannot_run_here_is_unverified_beside_its_proxies(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "available", gpu_missing)
    made = changed(replace(candidate(tiny.bundle), backend="tensorrt", precision="fp16"), precision="fp16")
    result = tiny.compare(made, bundle=tiny.bundle)
    assert (result.outcome, result.reason, result.cases) == ("unverified", "tensorrt needs an NVIDIA GPU", ())
    torch, graph = result.proxies
    assert (torch.label, torch.outcome) == ("torch fp16", "passed")
    # Rounding to 11 bits is visible, so it was computed in fp16.
    measured = torch.cases[0].outputs[0].metrics
    assert measured is not None
    assert measured.relative_l2 > 1e-4
    assert graph.label == "the bundle's fp32 graph on ONNX Runtime"
    assert graph.outcome == "passed"
    assert blamed([result]) is None


def test_a_proxy_that_fails_leaves_its_component_unverified(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "available", gpu_missing)
    made = changed(replace(candidate(tiny.bundle), backend="tensorrt", precision="fp16"), precision="fp16")
    tight = ToleranceRecord(relative_l2=1e-9, reason="nothing reaches this")
    result = tiny.compare(made, Tolerances({("component", "text_encoder", "torch", "fp16"): tight}))
    assert (result.outcome, result.proxies[0].outcome) == ("unverified", "failed")


@pytest.mark.long
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_all_engines_of_a_sound_set_pass(tiny: Tiny, tiny_engines: Engines, backend: str) -> None:
    results = compare_components(tiny.reference, tiny_engines(backend, "fp32"), tiny.inputs, load())
    assert [result.component for result in results] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert {result.outcome: result.reason for result in results} == {"passed": ""}


def test_a_sound_unet_and_step_pass(tiny: Tiny) -> None:
    found = compare_components(
        tiny.reference, tiny.bundle, tiny.inputs, load(), components=("denoise_step", "unet"), threads=1
    )
    assert [(each.component, each.outcome, each.reason) for each in found] == [
        ("unet", "passed", ""),
        ("denoise_step", "passed", ""),
    ]
    labels = [case.label for case in found[0].cases]
    assert labels[0] == "first and early, step 1 of 6, batch 1"
    assert labels[-1] == "mixed steps, batch 2"


def test_the_first_in_the_order_of_causes_is_blamed() -> None:
    def result(component: str, outcome: Outcome) -> ComponentResult:
        fields = {"component": component, "backend": "b", "precision": "fp32", "outcome": outcome, "reason": ""}
        return ComponentResult.model_validate({**fields, "cases": ()})

    assert blamed([result("denoise_step", "failed"), result("unet", "failed")]) == "unet"
    assert blamed([result("text_encoder", "unverified"), result("unet", "passed")]) is None
    assert blamed([]) is None
