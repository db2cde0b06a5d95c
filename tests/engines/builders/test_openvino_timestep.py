"""In bf16 the timestep's sines are those of the timestep, not of one that bf16 holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrt.engines.builders.openvino_timestep import keep_timestep
from sdrt.runtime.backends.cpu import supports_bf16
from sdrt.runtime.backends.openvino import core, cpu_config

FREQUENCIES = np.exp(-np.log(10000) * np.arange(16) / 16).astype(np.float32)[None]
#: None is a number that bf16 holds; it holds every fourth at this size.
TIMESTEPS = np.array([958.375, 999.0, 501.7], np.float32)
#: A sine rounded to bf16 before the product that stands for the embedding's first layer, and its sums: 2^-9 each.
TOLERANCE = 8e-3


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Sines and cosines as a UNet has them, through a product that OpenVINO computes in bf16."""
    nodes = [
        helper.make_node("Unsqueeze", ["timestep", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "frequencies"], ["angles"]),
        helper.make_node("Sin", ["angles"], ["sines"]),
        helper.make_node("Cos", ["angles"], ["cosines"]),
        helper.make_node("Concat", ["cosines", "sines"], ["both"], axis=-1),
        helper.make_node("MatMul", ["both", "same"], ["embedding"]),
    ]
    constants = {"axis": np.array([-1]), "frequencies": FREQUENCIES, "same": np.eye(32, dtype=np.float32)}
    made = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def embedding(graph: Path, *, kept: bool) -> npt.NDArray[np.float32]:
    """What the compiled model gives once it was written to a blob and read back."""
    model = core().read_model(graph)
    if kept:
        assert keep_timestep(model) == 1
    blob = core().compile_model(model, "CPU", cpu_config("bf16", 1)).export_model()
    [found] = core().import_model(blob, "CPU", cpu_config("bf16", 1))({"timestep": TIMESTEPS}).values()
    result: npt.NDArray[np.float32] = found
    return result


@pytest.mark.skipif(not supports_bf16(), reason="the processor does not compute in bf16")
def test_the_sines_are_of_the_timestep_itself(graph: Path) -> None:
    angles = TIMESTEPS[:, None].astype(np.float64) * FREQUENCIES
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    assert np.abs(embedding(graph, kept=True) - expected).max() < TOLERANCE
    # As OpenVINO does it by itself, they are of another timestep: the largest is wrong by more than half of its range.
    assert np.abs(embedding(graph, kept=False) - expected).max() > 0.5


def test_in_fp32_nothing_changes(graph: Path) -> None:
    found = []
    for kept in (False, True):
        model = core().read_model(graph)
        if kept:
            keep_timestep(model)
        found.append(core().compile_model(model, "CPU", cpu_config("fp32", 1))({"timestep": TIMESTEPS})["embedding"])
    np.testing.assert_array_equal(*found)


def test_what_knows_no_timestep_is_left_alone(graph: Path) -> None:
    model = onnx.load(graph)
    # The angles are no product of a timestep any more.
    next(node for node in model.graph.node if node.op_type == "Mul").op_type = "Add"
    assert keep_timestep(core().read_model(model.SerializeToString(), b"")) == 0
