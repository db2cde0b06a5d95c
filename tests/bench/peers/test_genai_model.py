"""The UNet written for openvino-genai: one timestep for the batch, otherwise the same model."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdrt.artefacts.bundle import Bundle
from sdrt.bench.peers.genai_model import _take_one_timestep
from sdrt.libraries.openvino import core, cpu_config, load_library
from tests.models.tiny_bundle import feeds


def outputs(model: Any, inputs: dict[str, Any]) -> Any:
    compiled = core().compile_model(model, "CPU", cpu_config("fp32", 1))
    return compiled(inputs)["out_sample"]


def test_one_timestep_serves_the_whole_batch(hand_bundle: Bundle) -> None:
    library = load_library()
    graph = hand_bundle.graph("unet")
    inputs = feeds("unet", 3) | {"timestep": np.full(3, 7, np.float32)}
    expected = outputs(core().read_model(graph), inputs)
    model = core().read_model(graph)
    _take_one_timestep(library, model)
    timestep = model.input("timestep")
    assert timestep.get_element_type() == library.Type.i64
    assert timestep.get_partial_shape().rank.get_length() == 1
    actual = outputs(model, inputs | {"timestep": np.array([7])})
    # The same arithmetic on the same numbers: 7 is exact in both types.
    np.testing.assert_array_equal(actual, expected)
    # Control: another timestep gives another output.
    assert np.abs(outputs(model, inputs | {"timestep": np.array([500])}) - expected).max() > 0.1
