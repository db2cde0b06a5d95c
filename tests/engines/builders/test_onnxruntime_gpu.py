"""Graphs for GPU providers, checked without a GPU: by ONNX Runtime's optimiser and by the list of CUDA's kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Component, ComponentName
from sdrt.engines.builders import ComponentJob, builder
from sdrt.engines.builders.onnxruntime_gpu import OPSET, OWN_DOMAIN, gpu_graph
from sdrt.errors import BackendUnavailableError, EngineError, UsageError
from tests.engines.graphs import FLOAT, INT64, write
from tests.helpers.jobs import job

#: Operators with fp32 kernels at opset 18 in the CUDA provider of onnxruntime-gpu 1.26.0 and 1.31.1. Measured with the
#: providers themselves over stand-ins for CUDA's libraries (docs/decisions/0034): they place all of this on the GPU.
CUDA_KERNELS = {
    *("Add", "ArgMax", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Equal", "Gather", "GatherElements", "GatherND"),
    *("Gelu", "Gemm", "InstanceNormalization", "LayerNormalization", "Less", "MatMul", "Mul", "MultiHeadAttention"),
    *("ReduceL2", "ReduceMax", "ReduceSum", "Reshape", "Resize", "Sigmoid", "Sin", "Slice", "Split", "Sqrt", "Sub"),
    *("TopK", "Transpose", "Unsqueeze", "Where"),
}
#: Of these the versions for opsets above 18 lack kernels in 1.26.0.
LACKING = {"Cos": 22, "Equal": 19, "InstanceNormalization": 22, "ReduceMax": 20, "Sin": 22}
EXPORTED: tuple[ComponentName, ...] = ("text_encoder", "unet", "denoise_step", "vae_encoder", "vae_decoder")
#: Relative L2. Normalisation and attention add in another order, each to within a few of float32's 24 bits, and some
#: fifty layers follow each other: 6e-6 measured.
TOLERANCE = 5e-5

Array = npt.NDArray[Any]
Rewrite = Callable[..., Path]


@pytest.fixture
def rewritten(tmp_path: Path) -> Rewrite:
    """Return a function that builds a component for CUDA and returns the graph's path in the engine set."""

    def rewrite(bundle: Bundle, component: ComponentName) -> Path:
        options = builder("onnxruntime").options(component, "cuda")
        built = builder("onnxruntime").build(job(bundle, component, tmp_path, options=options))
        return tmp_path / built.file

    return rewrite


def session(path: Path, saved: Path | None = None) -> Any:
    """Open a CPU session with the optimisations that run before nodes are placed; optionally save their result."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 2
    if saved is not None:
        options.log_severity_level = 3
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def optimised(path: Path, folder: Path) -> onnx.ModelProto:
    """Return the graph after ONNX Runtime's optimiser, functions expanded."""
    session(path, folder / "optimised.onnx")
    return onnx.load(folder / "optimised.onnx", load_external_data=False)


def on_the_cpu(model: onnx.ModelProto) -> list[str]:
    """List nodes that the CUDA provider would leave to the CPU: without a kernel there, or computing with shapes."""
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return [
        node.op_type
        for node in model.graph.node
        if node.op_type not in CUDA_KERNELS or (opset > OPSET and opset >= LACKING.get(node.op_type, opset + 1))
    ]


def whole_numbers(model: onnx.ModelProto) -> set[str]:
    """List operators that return integers."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    integers = {TensorProto.INT64, TensorProto.INT32}
    return {node.op_type for node in model.graph.node if types.get(node.output[0]) in integers}


def feeds(opened: Any, batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    given: dict[str, Array] = {}
    for value in opened.get_inputs():
        shape = [batch if isinstance(axis, str) else axis for axis in value.shape]
        given[value.name] = rng.integers(0, 400, shape) if "int64" in value.type else rng.random(shape, np.float32)
    return given


@pytest.mark.parametrize("component", EXPORTED)
def test_no_node_of_an_exported_graph_is_left_to_the_cpu(
    tiny_bundle: Bundle, rewritten: Rewrite, tmp_path: Path, component: ComponentName
) -> None:
    before = optimised(tiny_bundle.graph(component), tmp_path)
    after = optimised(rewritten(tiny_bundle, component), tmp_path)
    assert "Shape" in on_the_cpu(before)
    assert on_the_cpu(after) == []
    # The tokens themselves are reshaped.
    assert whole_numbers(after) <= ({"Reshape"} if component == "text_encoder" else set())


@pytest.mark.parametrize("component", EXPORTED)
def test_an_exported_graph_computes_what_the_cpus_does_in_any_batch(
    tiny_bundle: Bundle, rewritten: Rewrite, component: ComponentName
) -> None:
    cpu, gpu = session(tiny_bundle.graph(component)), session(rewritten(tiny_bundle, component))
    for batch in (1, 2):
        given = feeds(cpu, batch)
        (wanted, *_), (found, *_) = cpu.run(None, given), gpu.run(None, given)
        assert relative_l2(found, wanted) < TOLERANCE
    (other, *_) = gpu.run(None, feeds(cpu, 2, seed=1))
    assert relative_l2(other, wanted) > 10 * TOLERANCE


def test_the_weights_are_the_bundles_and_the_graph_is_valid(tiny_bundle: Bundle, rewritten: Rewrite) -> None:
    path = rewritten(tiny_bundle, "text_encoder")
    onnx.checker.check_model(str(path), full_check=False)
    weights = path.with_name("model.onnx.data")
    assert weights.read_bytes() == tiny_bundle.graph("text_encoder").with_name(weights.name).read_bytes()
    tiny_bundle.verify_weights()


def test_the_cpus_engines_stay_bit_for_bit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Compare the CPU's graph and its numbers with those of ONNX Runtime's optimiser on the bundle's graph."""
    maker = builder("onnxruntime")
    assert (maker.version, maker.options("text_encoder")) == (1, {})
    built = maker.build(job(tiny_bundle, "text_encoder", tmp_path))
    graph = tiny_bundle.graph("text_encoder")
    expected = tmp_path / "expected"
    expected.mkdir()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(expected / "model.onnx")
    for name, value in (("file_name", "model.onnx.data"), ("min_size_in_bytes", "1024")):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    whole = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    assert (tmp_path / built.file).read_bytes() == (expected / "model.onnx").read_bytes()
    assert built.weights is not None
    assert (tmp_path / built.weights).read_bytes() == (expected / "model.onnx.data").read_bytes()
    saved = onnxruntime.InferenceSession(tmp_path / built.file, providers=["CPUExecutionProvider"])
    given = feeds(whole, 2)
    np.testing.assert_array_equal(saved.run(None, given)[0], whole.run(None, given)[0])


def compared(path: Path, batch: int = 3) -> float:
    """Return the relative difference of a small graph and its rewritten form."""
    cpu = session(path)
    model = gpu_graph(path)
    onnx.checker.check_model(model)
    gpu = path.with_name("gpu.onnx")
    onnx.save(model, gpu)
    given = feeds(cpu, batch)
    return relative_l2(session(gpu).run(None, given)[0], cpu.run(None, given)[0])


@pytest.mark.parametrize(("space", "groups", "epsilon"), [((6,), 2, 1e-6), ((4, 5), 8, 1e-5), ((2, 3, 4), 1, 0.5)])
def test_group_normalisation_of_any_rank(tmp_path: Path, space: tuple[int, ...], groups: int, epsilon: float) -> None:
    shape = ("batch", 8, *space)
    node = helper.make_node("GroupNormalization", ["x", "scale", "shift"], ["y"], num_groups=groups, epsilon=epsilon)
    weights = {"scale": np.linspace(1, 2, 8, dtype=np.float32), "shift": np.linspace(-1, 1, 8, dtype=np.float32)}
    path, _ = write(tmp_path / "model.onnx", [node], {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, weights)
    # One normalisation, of at most a few of float32's 24 bits.
    assert compared(path) < 1e-6
    before, after = (optimised(tmp_path / name, tmp_path) for name in ("model.onnx", "gpu.onnx"))
    assert "Shape" in on_the_cpu(before)
    assert on_the_cpu(after) == []


def attention(path: Path, *, mask: Array | None = None, expanded: bool = False, **attributes: Any) -> Path:
    """Write an attention of two heads, of four queries over four keys; a mask may be expanded to the batch."""
    shape = ("batch", 2, 4, 8)
    nodes = []
    weights: dict[str, Any] = {} if mask is None else {"mask": mask, "rest": np.array([1, 4, 4])}
    names = ["q", "k", "v", *([] if mask is None else ["mask"])]
    if expanded:
        nodes.append(helper.make_node("Shape", ["q"], ["rows"], start=0, end=1))
        nodes.append(helper.make_node("Concat", ["rows", "rest"], ["lengths"], axis=0))
        nodes.append(helper.make_node("Expand", ["mask", "lengths"], ["whole"]))
        names[-1] = "whole"
    nodes.append(helper.make_node("Attention", names, ["y"], **attributes))
    inputs = dict.fromkeys(("q", "k", "v"), (FLOAT, shape))
    return write(path, nodes, inputs, {"y": (FLOAT, shape)}, weights)[0]


CAUSAL = np.tri(4, dtype=bool)[None, None]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scale": 0.2},
        {"is_causal": 1},
        {"mask": CAUSAL},
        {"mask": CAUSAL[0, 0]},
        {"mask": CAUSAL, "expanded": True, "scale": 0.1},
    ],
    ids=["plain", "scale", "causal", "mask", "mask of rank 2", "CLIP's mask"],
)
def test_attention_by_onnxruntimes_own_operator(tmp_path: Path, given: dict[str, Any]) -> None:
    path = attention(tmp_path / "model.onnx", **given)
    # Eight products a logit and four weights a row.
    assert compared(path) < 1e-6
    (node,) = (node for node in gpu_graph(path).graph.node if node.domain == OWN_DOMAIN)
    causal = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}["unidirectional"]
    assert causal == ("mask" in given or "is_causal" in given)
    # Here the form of the mask matters.
    assert compared(attention(tmp_path / "model.onnx", is_causal=1)) < 1e-6
    masked, free = (session(attention(tmp_path / "model.onnx", is_causal=flag)) for flag in (1, 0))
    assert relative_l2(masked.run(None, feeds(free, 1))[0], free.run(None, feeds(free, 1))[0]) > 0.01


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mask": ~CAUSAL | np.eye(4, dtype=bool)}, "a mask that is not causal"),
        ({"mask": np.zeros((4, 4), np.float32)}, "a mask that is not causal"),
        ({"mask": np.tri(4, k=1, dtype=bool)}, "a mask that is not causal"),
        ({"softcap": 2.0}, "softcap"),
    ],
    ids=["upper", "floats", "one further", "softcap"],
)
def test_another_attention_is_refused(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=f"attention y has {reason}") as caught:
        gpu_graph(attention(tmp_path / "model.onnx", **given))
    assert "--provider" in caught.value.hint


@pytest.mark.parametrize(("approximate", "operator"), [("none", "Gelu"), ("tanh", "FastGelu")])
def test_gelu(tmp_path: Path, approximate: str, operator: str) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
    values = {"x": (FLOAT, ("batch", 50))}
    path, _ = write(tmp_path / "model.onnx", [node], values, {"y": (FLOAT, ("batch", 50))}, {})
    assert compared(path) < 1e-6
    assert [(node.op_type, node.domain) for node in gpu_graph(path).graph.node] == [(operator, OWN_DOMAIN)]


def test_a_graph_that_still_computes_with_shapes_is_refused(tmp_path: Path) -> None:
    """Use an opset 20 graph, whose group normalisation is written out."""
    nodes = [helper.make_node("Shape", ["x"], ["lengths"]), helper.make_node("Reshape", ["x", "lengths"], ["y"])]
    shape = ("batch", 3)
    path, _ = write(tmp_path / "model.onnx", nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, {})
    with pytest.raises(UsageError, match=r"computes with shapes \(Shape\)") as caught:
        gpu_graph(path)
    assert "opset 23" in caught.value.hint


def test_a_value_of_unknown_shape_is_named(tmp_path: Path) -> None:
    node = helper.make_node("GroupNormalization", ["x", "scale", "shift"], ["y"], num_groups=2)
    shape = ("batch", 4, "height")
    weights = {"scale": np.ones(4, np.float32), "shift": np.ones(4, np.float32)}
    path, _ = write(tmp_path / "model.onnx", [node], {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, weights)
    with pytest.raises(EngineError, match="the shape of x is not known"):
        gpu_graph(path)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailableError, match="onnx is needed to build for a GPU") as caught:
        gpu_graph(tmp_path / "model.onnx")
    assert "gpu" in caught.value.hint


def test_a_component_without_weights_beside_it(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    shape = ("batch", 3)
    path, spec = write(tmp_path / "g/model.onnx", [node], {"x": (INT64, shape)}, {"y": (INT64, shape)}, {})
    made = _job(path, spec, tmp_path)
    assert [entry.name for entry in (tmp_path / builder("onnxruntime").build(made).file).parent.iterdir()] == [
        "model.onnx"
    ]


def _job(graph: Path, spec: Component, folder: Path) -> ComponentJob:
    return ComponentJob(
        backend="onnxruntime",
        component="unet",
        graph=graph,
        spec=spec.model_copy(update={"precision": "fp32"}),
        precision="fp32",
        batch=None,
        options={"provider": "cuda"},
        threads=1,
        folder=folder,
    )
