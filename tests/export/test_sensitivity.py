"""The most expensive modules in int8: each one's error is that of rounding its input alone, and few are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from sdrt.export.calibration import GUIDANCE_SCALE, Pass
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.sensitivity import Sensitivity, by_sensitivity, to_keep
from sdrt.graphs.values import SCOPES
from sdrt.progress import silent

Array = npt.NDArray[np.float32]
CHANNELS, SIZE = 4, 8
#: Weight of each module's output in the graph's output.
GAINS = {"down_blocks.0.quiet": 0.1, "down_blocks.0.loud": 10.0, "mid_block.middling": 1.0}
BOUND = 4.0


@pytest.fixture
def sample() -> Array:
    return np.random.default_rng(1).standard_normal((2, CHANNELS, SIZE, SIZE)).clip(-BOUND, BOUND).astype(np.float32)


@pytest.fixture
def kernels() -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {
        name: np.float32(gain) * rng.standard_normal((CHANNELS, CHANNELS), np.float32) for name, gain in GAINS.items()
    }


@pytest.fixture
def graph(tmp_path: Path, kernels: dict[str, Array]) -> Path:
    """Write 1x1 convolutions of one sample, one for each module and one without; their sum."""
    weights = {**kernels, "": np.ones((CHANNELS, CHANNELS), np.float32)}
    nodes: list[Any] = []
    for index, module in enumerate(weights):
        node = helper.make_node("Conv", ["sample", f"kernel.{index}"], [f"out.{index}"])
        if module:
            node.metadata_props.add(key=SCOPES, value=repr(["", "unet", f"unet.{module}", "convolution"]))
        nodes.append(node)
    nodes.append(helper.make_node("Sum", [f"out.{index}" for index in range(len(weights))], ["out_sample"]))
    shape = ("batch", CHANNELS, SIZE, SIZE)
    made = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("sample", 1, shape)],
        [helper.make_tensor_value_info("out_sample", 1, shape)],
        [numpy_helper.from_array(one[..., None, None], f"kernel.{k}") for k, one in enumerate(weights.values())],
        value_info=[helper.make_tensor_value_info(f"out.{index}", 1, shape) for index in range(len(weights))],
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "model.onnx"
    )
    return tmp_path / "model.onnx"


def test_a_module_s_fault_is_that_of_rounding_its_input_alone(
    graph: Path, sample: Array, kernels: dict[str, Array]
) -> None:
    total = sum(kernels.values()) + np.ones((CHANNELS, CHANNELS), np.float32)
    made = Pass({"sample": sample}, np.einsum("oc,bchw->bohw", total, sample), width=0.5)
    found = by_sensitivity(graph, {"sample": (-BOUND, BOUND)}, [made, made], silent)
    # The loudest first; nodes without a module are not listed.
    assert [one.module for one in found] == ["down_blocks.0.loud", "mid_block.middling", "down_blocks.0.quiet"]
    step = np.float32(BOUND / 127)
    lost = np.rint(sample / step) * step - sample
    for one in found:
        fault = np.einsum("oc,bchw->bohw", kernels[one.module], lost)
        guided = fault[0] + GUIDANCE_SCALE * (fault[1] - fault[0])
        # The picture is one area: the length of its means' fault, had by each of its 8x8 latents, in two steps. Faults
        # are differences of outputs of about 30, kept in fp32: the quiet module's are 1e-2, their means 1e-3.
        length = SIZE * np.linalg.norm(guided.mean(axis=(1, 2)))
        assert one.squared_error == pytest.approx(2 * (0.5 * length) ** 2, rel=1e-2)
        assert one.flops == 2 * CHANNELS * CHANNELS * SIZE * SIZE


def test_of_equal_faults_the_smaller_work_goes_first(graph: Path, sample: Array) -> None:
    model = onnx.load(graph)
    # The quiet module becomes as loud as the loud one, with a tenth of the work.
    loud = numpy_helper.to_array(model.graph.initializer[1])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(loud, "kernel.0"))
    shape = next(value.type.tensor_type.shape for value in model.graph.value_info if value.name == "out.0")
    shape.dim[3].dim_value = 1
    onnx.save(model, graph)
    plain = open_cpu_session(graph).run(None, {"sample": sample})
    made = Pass({"sample": sample}, plain[0], width=1.0)
    first, second, _ = by_sensitivity(graph, {"sample": (-BOUND, BOUND)}, [made], silent)
    assert [first.module, second.module] == ["down_blocks.0.quiet", "down_blocks.0.loud"]
    assert first.squared_error == pytest.approx(second.squared_error, rel=1e-3)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(1.0, ""), (0.99, "a"), (0.6, "a"), (0.5, "ab"), (0.21, "ab"), (0.19, "abc"), (0.0, "abc")],
)
def test_as_few_are_kept_as_leave_the_share(share: float, kept: str) -> None:
    # Squares of faults: 64, 32 and 4 of 100, so that 0.6 and 0.2 of the length are left.
    found = [Sensitivity("a", 64.0, 1), Sensitivity("b", 32.0, 1), Sensitivity("c", 4.0, 1)]
    assert "".join(to_keep(found, share)) == kept
