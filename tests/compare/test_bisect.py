"""The search for the first tensor that differs: it finds planted faults, and nothing without one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sdrt.artefacts.bundle import Bundle
from sdrt.compare import bisect
from sdrt.compare.bisect import Search, find_departure, locate
from sdrt.compare.compare import ComparisonSettings, compare
from sdrt.compare.components import CAUSAL
from sdrt.compare.faults import FAULTS, Fault, plant
from sdrt.compare.inputs import Case, Inputs
from sdrt.compare.reference import Reference
from sdrt.compare.schema import Departure, ToleranceRecord
from sdrt.compare.subject import SubjectRequest
from sdrt.compare.tolerances import load
from sdrt.errors import BackendUnavailableError
from sdrt.export.shared_prefix import first_axis
from sdrt.graphs.values import module_path
from tests.compare import comparisons


def own(component: str) -> ToleranceRecord:
    """Return the tolerance of a component of the bundle."""
    tolerance = load().of(component, "onnxruntime", "fp32")
    assert tolerance is not None
    return tolerance


def test_a_weight_of_another_checkpoint(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    faulty = plant(tiny_bundle, FAULTS["weight-of-another-checkpoint"], tmp_path / "bundle")
    feeds = tiny_inputs.cases("text_encoder", None)[0].feeds
    found = find_departure(tiny_reference, faulty, "text_encoder", feeds, own("text_encoder")).departure
    assert found is not None
    layer = "text_encoder.encoder.layers."
    assert found.source_module.startswith(layer)
    assert found.source_module.endswith((".fc1", ".fc2"))
    assert found.operator in ("MatMul", "Add", "Gemm")
    assert found.metrics is not None
    assert found.metrics.relative_l2 > 0.1
    # It is the first: the norm before that layer is as it was.
    node = {node.name: node for node in onnx.load(faulty.graph("text_encoder"), load_external_data=False).graph.node}
    assert module_path(node[found.node]) == found.source_module
    sound = find_departure(tiny_reference, tiny_bundle, "text_encoder", feeds, own("text_encoder"))
    assert sound.departure is None
    assert sound.compared > 10
    # A limit of the peak alone counts as a limit, neither as none nor as 0.
    loose, tight = (ToleranceRecord(peak=peak, reason="a test's") for peak in (0.9, 1e-3))
    assert find_departure(tiny_reference, tiny_bundle, "text_encoder", feeds, tight).departure is None
    assert find_departure(tiny_reference, faulty, "text_encoder", feeds, tight).departure == found
    assert find_departure(tiny_reference, faulty, "text_encoder", feeds, None).departure is None
    first = find_departure(tiny_reference, faulty, "text_encoder", feeds, loose).departure
    assert first is None or (first.metrics is not None and first.metrics.peak > 0.9)


def test_the_step_s_own_nodes(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    faulty = plant(tiny_bundle, FAULTS["guidance-halves-swapped"], tmp_path / "bundle")
    feeds = tiny_inputs.cases("denoise_step", None)[0].feeds
    found = find_departure(tiny_reference, faulty, "denoise_step", feeds, own("denoise_step")).departure
    assert found is not None
    assert (found.tensor, found.operator, found.source_module) == ("step.uncond", "Gather", "")


def _spoil_first_norm(model: onnx.ModelProto, _path: Path) -> None:
    """Change the divisor of the first normalisation, which comes before the first cross-attention."""
    node = next(node for node in model.graph.node if node.op_type == "GroupNormalization")
    (epsilon,) = (attribute for attribute in node.attribute if attribute.name == "epsilon")
    epsilon.f = 1.0


def _share_too_much(model: onnx.ModelProto, _path: Path) -> None:
    """Use the unconditional half's states for both halves."""
    states = "unet.encoder_hidden_states"
    nodes = list(model.graph.node)
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == states:
                node.input[index] = "fault.both"
    (index,) = (index for index, node in enumerate(nodes) if node.output[0] == states)
    nodes[index : index + 1] = [
        onnx.helper.make_node("Identity", ["uncond_states"], [states], name="fault"),
        onnx.helper.make_node("Concat", [states, states], ["fault.both"], axis=0),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("plant_in_step", "tensor", "module"),
    [
        (_spoil_first_norm, None, "unet.down_blocks.0.resnets.0.norm1"),
        (_share_too_much, "unet.encoder_hidden_states", ""),
    ],
)
def test_what_both_halves_share_is_compared_with_each_of_them(
    tiny_reference: Reference,
    tiny_inputs: Inputs,
    tiny_bundle: Bundle,
    tmp_path: Path,
    plant_in_step: Callable[[onnx.ModelProto, Path], None],
    tensor: str | None,
    module: str,
) -> None:
    fault = Fault("a test's", "denoise_step", plant_in_step)
    faulty = plant(tiny_bundle, fault, tmp_path / "bundle")
    feeds = tiny_inputs.cases("denoise_step", None)[0].feeds
    found = find_departure(tiny_reference, faulty, "denoise_step", feeds, own("denoise_step")).departure
    assert found is not None
    assert found.source_module == module
    assert tensor in (None, found.tensor)
    graph = onnx.load(faulty.graph("denoise_step"), load_external_data=False).graph
    once = {value.name for value in graph.value_info if first_axis(value) == "batch"}
    assert tensor is not None or found.tensor in once
    assert find_departure(tiny_reference, tiny_bundle, "denoise_step", feeds, own("denoise_step")).departure is None


@pytest.mark.parametrize("change", [lambda output: output * np.nan, lambda output: output[:, :5]])
def test_an_output_of_nan_or_of_another_shape_departs(
    change: Callable[[torch.Tensor], torch.Tensor],
    tiny_reference: Reference,
    tiny_inputs: Inputs,
    tiny_bundle: Bundle,
) -> None:
    feeds = dict(tiny_inputs.cases("text_encoder", None)[0].feeds)
    module = tiny_reference.source("text_encoder").module
    hook = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        found = find_departure(tiny_reference, tiny_bundle, "text_encoder", feeds, None).departure
    finally:
        hook.remove()
        tiny_reference.release()
    # Only the whole network's output is changed, so it is the one that differs, and has no metrics.
    assert found is not None
    assert (found.tensor, found.metrics) == ("last_hidden_state", None)


DEPARTURE = Departure(tensor="t", node="n", operator="Conv", source_module="m", metrics=None)
COMPILED = "its graph agrees with PyTorch; the engine compiled from it does not"
FACTOR = "the manifest's scaling_factor is 1, the checkpoint's is 0.18215"


@pytest.mark.parametrize(
    ("factor", "search", "reason"),
    [
        (0.18215, Search(None, 5), f"too far; {COMPILED}"),
        (0.18215, Search(None, 0), "too far; its graph has no tensor to compare with PyTorch"),
        (0.18215, Search(DEPARTURE, 5), "too far"),
        (1.0, Search(None, 5), f"too far; {FACTOR}"),
        (1.0, Search(DEPARTURE, 5), f"too far; {FACTOR}"),
    ],
)
def test_what_is_at_fault_is_said(
    factor: float,
    search: Search,
    reason: str,
    tiny_reference: Reference,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bisect, "find_departure", lambda *_: search)
    model = tiny_bundle.manifest.model.model_copy(update={"scaling_factor": factor})
    failed = comparisons.component("vae_decoder", comparisons.output(1, "failed", "too far"))
    cases = [Case(failed.cases[0].label, 2, {})]
    found = locate(failed, tiny_reference, model, tiny_bundle, cases)
    assert (found.reason, found.departure) == (reason, search.departure)
    # Engines alone have no graph to search; their manifest is still there.
    alone = locate(failed, tiny_reference, model, None, cases)
    assert (FACTOR in alone.reason, COMPILED in alone.reason, alone.departure) == (factor == 1, False, None)


def test_what_bisection_needs_is_looked_for_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(backend: str) -> None:
        raise BackendUnavailableError(f"{backend} is not installed", hint="")

    monkeypatch.setattr(bisect, "available", missing)
    with pytest.raises(BackendUnavailableError, match="onnxruntime is not installed"):
        compare(SubjectRequest(tmp_path / "nothing"), ComparisonSettings(load(), bisect=True))


@pytest.mark.long
@pytest.mark.parametrize("component", CAUSAL)
def test_a_sound_graph_departs_nowhere(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, component: str
) -> None:
    name = next(known for known in CAUSAL if known == component)
    for case in tiny_inputs.cases(name, None)[:2]:
        assert find_departure(tiny_reference, tiny_bundle, name, case.feeds, own(name)).departure is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "operator", "module"),
    [
        # An epsilon matters where the variance is small; the noise decides in which of the first block's norms.
        ("groupnorm-epsilon", "GroupNormalization", r"unet\.down_blocks\.0\.resnets\.0\.norm"),
        ("convolution-scaled", "Conv", r"\.conv2$"),
        ("timestep-integer", "Round", "^$"),
        ("attention-head-transposed", "MatMul", r"\.to_v$"),
    ],
)
def test_faults_of_the_unet_are_located_in_the_step_too(
    tiny_reference: Reference,
    tiny_inputs: Inputs,
    tiny_bundle: Bundle,
    tmp_path: Path,
    fault: str,
    operator: str,
    module: str,
) -> None:
    faulty = plant(tiny_bundle, FAULTS[fault], tmp_path / "bundle")
    for component in CAUSAL[1:3]:
        feeds = tiny_inputs.cases(component, None)[1].feeds
        found = find_departure(tiny_reference, faulty, component, feeds, own(component)).departure
        assert found is not None
        assert found.operator == operator
        assert re.search(module, found.source_module)
