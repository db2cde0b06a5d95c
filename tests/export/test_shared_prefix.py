"""The guidance halves' shared part is computed once, changes nothing, and ends where the halves begin to differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrt.arrays import relative_l2
from sdrt.artefacts.manifest import Component, TensorSpec
from sdrt.export.check import check_denoise_step
from sdrt.export.denoise_step import describe, write_denoise_step
from sdrt.export.shared_prefix import SharedPrefix, split_prefix

LATENTS = (4, 8, 8)
STATES = (7, 8)
PICTURES = 3

Nodes = list[onnx.NodeProto]
Floats = npt.NDArray[np.float32]


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def unet_nodes() -> Nodes:
    """Build a skip connection, a timestep embedding for each of two convolutions, and a first use of states between."""
    return [
        node("Conv", ["sample", "kernel"], "entry", pads=[1, 1, 1, 1]),
        node("Reshape", ["timestep", "column"], "time"),
        node("Mul", ["time", "thousandth"], "wave"),
        node("Add", ["entry", "wave"], "moved"),
        node("Conv", ["moved", "kernel"], "first", pads=[1, 1, 1, 1]),
        node("Sin", ["wave"], "later_wave"),
        node("ReduceMean", ["encoder_hidden_states", "axes"], "mean", keepdims=1),
        node("Reshape", ["mean", "column"], "context"),
        node("Mul", ["first", "context"], "attended"),
        node("Add", ["attended", "later_wave"], "second"),
        node("Add", ["second", "entry"], "out_sample"),
    ]


def unet_model(nodes: Nodes, known: Sequence[str] = ("entry", "first", "wave", "later_wave")) -> onnx.ModelProto:
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape))

    weights = {
        "kernel": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32) / 6,
        "column": np.array([-1, 1, 1, 1]),
        "thousandth": np.array(1e-3, np.float32),
        "axes": np.array([1, 2]),
    }
    shapes = {"entry": LATENTS, "first": LATENTS, "wave": (1, 1, 1), "later_wave": (1, 1, 1)}
    graph = helper.make_graph(
        nodes,
        "unet",
        [value("sample", *LATENTS), value("timestep"), value("encoder_hidden_states", *STATES)],
        [value("out_sample", *LATENTS)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
        value_info=[value(name, *shapes[name]) for name in known],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def composed(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return write_denoise_step(folder / "model.onnx", "epsilon")


def split(model: onnx.ModelProto) -> SharedPrefix:
    return split_prefix(
        model.graph, sample="sample", timestep="timestep", states="encoder_hidden_states", batch="batch"
    )


def outputs_of(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    return [entry.output[0] for entry in nodes]


def run(path: Path, inside: Sequence[str]) -> list[Floats]:
    """Return values inside the step, and its outputs, for pictures at different times."""
    model = onnx.load(path)
    for name in inside:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {
        entry.name: rng.uniform(0.5, 2, (PICTURES, *entry.shape[1:])).astype(np.float32)
        for entry in session.get_inputs()
    }
    values: list[Floats] = session.run([*inside, "next_latents", "next_history"], feeds)
    return values


def test_it_ends_where_the_states_come_in() -> None:
    prefix = split(unet_model(unet_nodes()))
    assert outputs_of(prefix.nodes) == ["entry", "time", "wave", "moved", "first"]
    # Nodes that depend on the timestep alone stay in the rest, except for their source.
    assert outputs_of(prefix.rest) == ["later_wave", "mean", "context", "attended", "second", "out_sample"]
    assert prefix.doubled == ("wave", "first", "entry")


def test_each_picture_is_computed_once_and_nothing_changes(tmp_path: Path) -> None:
    shared = composed(unet_model(unet_nodes()), tmp_path)
    (tmp_path / "plain").mkdir()
    plain = composed(unet_model(unet_nodes(), known=()), tmp_path / "plain")
    first, second, *with_prefix = run(shared, ["first", "second"])
    first_twice, _, *without = run(plain, ["first", "second"])
    assert (len(first), len(second), len(first_twice)) == (PICTURES, 2 * PICTURES, 2 * PICTURES)
    for found, expected in zip(with_prefix, without, strict=True):
        np.testing.assert_array_equal(found, expected)
    # The plain step's own check accepts it too: rounding of a few operations.
    assert check_denoise_step(tmp_path / "model.onnx", shared, "epsilon", "fp32") < 1e-6


def exchange(nodes: Nodes) -> None:
    """Read each picture's row from the other end of the batch."""
    index = next(i for i, entry in enumerate(nodes) if entry.output[0] == "step.both.first")
    nodes[index].input[1] = "turned"
    nodes.insert(index, node("Slice", ["first", "from", "to", "axis", "by"], "turned"))


def test_rows_of_another_picture_would_be_seen(tmp_path: Path) -> None:
    """Check that the comparison above finds a duplication that mixes pictures up."""
    path = composed(unet_model(unet_nodes()), tmp_path)
    sound = run(path, [])
    model = onnx.load(path)
    nodes = list(model.graph.node)
    exchange(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, number in (("from", -1), ("to", -(2**31)), ("axis", 0), ("by", -1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    onnx.save(model, path)
    assert relative_l2(run(path, [])[0], sound[0]) > 1e-3


def states_first(nodes: Nodes) -> None:
    nodes[3].input[1] = "context"
    nodes[:] = [*nodes[6:8], *nodes[:6], *nodes[8:]]


def ask_length(nodes: Nodes) -> None:
    nodes.insert(1, node("Shape", ["entry"], "lengths"))
    nodes[4] = node("Expand", ["entry", "lengths"], "moved")


@pytest.mark.parametrize(
    ("change", "known", "shared"),
    [
        (states_first, ("entry", "first"), ["entry"]),
        # Inputs of both halves have the length of both.
        (ask_length, ("entry", "first"), ["entry"]),
        # The batch axis is unknown, so "first" is computed for both halves.
        (None, ("entry", "wave"), ["entry"]),
        (None, (), []),
    ],
)
def test_what_is_not_certain_is_not_shared(
    change: Callable[[Nodes], None] | None,
    known: tuple[str, ...],
    shared: list[str],
    tmp_path: Path,
) -> None:
    nodes = unet_nodes()
    if change is not None:
        change(nodes)
    model = unet_model(nodes, known)
    prefix = split(model)
    assert [name for name in outputs_of(prefix.nodes) if name in ("entry", "first")] == shared
    path = composed(model, tmp_path)
    assert check_denoise_step(tmp_path / "model.onnx", path, "epsilon", "fp32") < 1e-6


def test_the_manifest_counts_shared_work_once(tmp_path: Path) -> None:
    path = composed(unet_model(unet_nodes()), tmp_path)
    spec = TensorSpec(name="sample", dtype="float32", shape=("batch", *LATENTS))
    convolution = 2 * 4 * 8 * 8 * 4 * 3 * 3
    unet = Component(
        graph="unet/model.onnx",
        weights=None,
        precision="fp32",
        inputs=(spec, spec, spec),
        outputs=(spec,),
        parameters=144,
        flops=2 * convolution,
    )
    step = describe(unet, path)
    # Both convolutions are the prefix's.
    assert (step.graph, step.flops) == ("unet/denoise_step.onnx", 2 * convolution)
