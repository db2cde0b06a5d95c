"""The search for the first tensor that departs: it finds what was planted, and nothing where nothing was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sdrt.bundle import Bundle
from sdrt.compare.bisect import find_departure, module_path
from sdrt.compare.components import CAUSAL
from sdrt.compare.faults import FAULTS, plant
from sdrt.compare.inputs import Inputs
from sdrt.compare.reference import Reference

LIMIT = 1e-4


def test_a_weight_of_another_checkpoint(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    faulty = plant(tiny_bundle, FAULTS["weight-of-another-checkpoint"], tmp_path / "bundle")
    feeds = tiny_inputs.cases("text_encoder", None)[0].feeds
    found = find_departure(tiny_reference, faulty, "text_encoder", feeds, LIMIT)
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
    assert find_departure(tiny_reference, tiny_bundle, "text_encoder", feeds, LIMIT) is None


def test_the_step_s_own_nodes(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    faulty = plant(tiny_bundle, FAULTS["guidance-halves-swapped"], tmp_path / "bundle")
    feeds = tiny_inputs.cases("denoise_step", None)[0].feeds
    found = find_departure(tiny_reference, faulty, "denoise_step", feeds, LIMIT)
    assert found is not None
    assert (found.tensor, found.operator, found.source_module) == ("step.uncond", "Gather", "")


def test_nan_departs(tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle) -> None:
    feeds = dict(tiny_inputs.cases("text_encoder", None)[0].feeds)
    module = tiny_reference.source("text_encoder").module
    hook = module.register_forward_hook(lambda _module, _inputs, output: output * np.nan)
    try:
        found = find_departure(tiny_reference, tiny_bundle, "text_encoder", feeds, LIMIT)
    finally:
        hook.remove()
        tiny_reference.release()
    # Only the whole network's output is NaN, so that is what departs, and has no metrics.
    assert found is not None
    assert (found.tensor, found.metrics) == ("last_hidden_state", None)


@pytest.mark.long
@pytest.mark.parametrize("component", CAUSAL)
def test_a_sound_graph_departs_nowhere(
    tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle, component: str
) -> None:
    name = next(known for known in CAUSAL if known == component)
    for case in tiny_inputs.cases(name, None)[:2]:
        assert find_departure(tiny_reference, tiny_bundle, name, case.feeds, LIMIT) is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "operator", "module"),
    [
        # An epsilon shows where the variance is small: which of the first block's two norms, the noise decides.
        ("groupnorm-epsilon", "GroupNormalization", "unet.down_blocks.0.resnets.0.norm"),
        ("convolution-scaled", "Conv", ".conv2"),
        ("timestep-integer", "Round", ""),
        ("attention-head-transposed", "MatMul", ".to_v"),
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
        found = find_departure(tiny_reference, faulty, component, feeds, LIMIT)
        assert found is not None
        assert found.operator == operator
        assert module in found.source_module
