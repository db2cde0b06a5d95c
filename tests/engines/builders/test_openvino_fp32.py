"""In bf16 the timestep's sines are computed exactly, and a UNet's last layers compute in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrt.artefacts.manifest import Precision
from sdrt.engines.builders import openvino as openvino_builder
from sdrt.engines.builders.openvino_fp32 import keep_last_layers, keep_timestep
from sdrt.libraries.openvino import core, cpu_config
from sdrt.machine.cpu import supports_bf16

FREQUENCIES = np.exp(-np.log(10000) * np.arange(16) / 16).astype(np.float32)[None]
#: None of them is exact in bf16, which holds every fourth number at this size.
TIMESTEPS = np.array([958.375, 999.0, 501.7], np.float32)
#: A sine rounded to bf16 before the product that stands for the embedding's first layer, and its sums: 2^-9 each.
TOLERANCE = 8e-3


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Write a UNet's sines and cosines, through a product that OpenVINO computes in bf16."""
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
    """Return the compiled model's output after a round trip through a blob."""
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
    # By OpenVINO's default they are of another timestep: the largest error is more than half of the range.
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
    # The angles are no longer a product of a timestep.
    next(node for node in model.graph.node if node.op_type == "Mul").op_type = "Add"
    assert keep_timestep(core().read_model(model.SerializeToString(), b"")) == 0


def ending(tmp_path: Path, *, gate: str = "Sigmoid") -> Path:
    """Write a UNet's ending, after a convolution that passes its input on exactly, in any precision that holds it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["sample", "same"], ["value"]),
        helper.make_node("GroupNormalization", ["value", "scale", "shift"], ["even"], num_groups=4, epsilon=1e-5),
        helper.make_node(gate, ["even"], ["gate"]),
        helper.make_node("Mul", ["even", "gate"], ["silu"]),
        helper.make_node("Conv", ["silu", "kernel", "bias"], ["out_sample"], pads=[1, 1, 1, 1]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "same": np.eye(16, dtype=np.float32)[..., None, None],
        "scale": rng.uniform(0.5, 2, 16),
        "shift": rng.standard_normal(16),
        "kernel": rng.standard_normal((4, 16, 3, 3)) / 12,
        "bias": rng.standard_normal(4),
    }
    made = helper.make_graph(
        nodes,
        "ending",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 16, 8, 8])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "ending.onnx")
    return tmp_path / "ending.onnx"


def error(graph: Path, precision: Precision, *, kept: bool) -> float:
    """Return a compiled model's largest error against fp32, over the largest value, for an input that bf16 holds."""
    sample = np.random.default_rng(1).integers(-128, 128, (2, 16, 8, 8)).astype(np.float32) / 64
    exact = core().compile_model(core().read_model(graph), "CPU", cpu_config("fp32", 1))(sample)["out_sample"]
    model = core().read_model(graph)
    if kept:
        assert keep_last_layers(model)
    if precision == "bf16":
        openvino_builder._round_weights(model)
    blob = core().compile_model(model, "CPU", cpu_config(precision, 1)).export_model()
    found = core().import_model(blob, "CPU", cpu_config(precision, 1))(sample)["out_sample"]
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@pytest.mark.skipif(not supports_bf16(), reason="the processor does not compute in bf16")
def test_the_last_layers_compute_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ending(tmp_path)
    # 2^-24 in each of some 150 sums, where bf16 has 2^-9
    assert error(graph, "bf16", kept=True) < 3e-6
    assert error(graph, "bf16", kept=False) > 1e-3
    # fp32 layers over weights that were rounded
    monkeypatch.setattr(openvino_builder, "KEPT", "no node's name")
    assert error(graph, "bf16", kept=True) > 3e-4


def test_the_last_layers_say_the_same(tmp_path: Path) -> None:
    assert error(ending(tmp_path), "fp32", kept=True) < 3e-6


def test_what_ends_otherwise_is_left_alone(tmp_path: Path, graph: Path) -> None:
    assert not keep_last_layers(core().read_model(ending(tmp_path, gate="Tanh")))
    assert not keep_last_layers(core().read_model(graph))
