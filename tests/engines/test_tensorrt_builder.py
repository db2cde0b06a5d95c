"""Real builds by TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper

from sdrt.artefacts.engine_set import BatchRange
from sdrt.engines.builders.tensorrt import TensorRtRtxBuilder
from sdrt.errors import EngineError, UsageError
from tests.engines.builders_trt import RECIPE, Heard, make_job
from tests.engines.graphs import FLOAT, HALF, OPERATORS, attention_graph, every_operator, write


def test_every_operator_kind_of_the_components_builds(tmp_path: Path) -> None:
    graph, spec = every_operator(tmp_path)
    used = {node.op_type for node in onnx.load(graph).graph.node}
    assert used == OPERATORS
    heard = Heard()
    recipe = RECIPE.model_copy(update={"targets": ("sm86", "sm89", "sm120")})
    built = TensorRtRtxBuilder(heard).build(make_job(graph, spec, tmp_path / "set", recipe=recipe))
    plan = tmp_path / "set" / built.file
    assert built.size_bytes == plan.stat().st_size > 10_000
    assert built.peak_memory_bytes is not None
    assert built.peak_memory_bytes > plan.stat().st_size
    assert built.layers is not None
    assert built.layers.kinds["convolution"] == {"fp16": 2}
    assert "fp32" in built.layers.kinds["unary"]
    (attention,) = built.layers.attentions
    assert (attention.heads, attention.head_size, attention.fused) == (2, 32, True)
    assert heard.percents == sorted(set(heard.percents))
    assert heard.percents[-1] == 100
    assert heard.notes == []


@pytest.mark.parametrize(("head_size", "dtype", "precision"), [(8, HALF, "fp16"), (32, FLOAT, "fp32")])
def test_an_attention_without_a_kernel_is_decomposed_and_said_so(
    tmp_path: Path, head_size: int, dtype: int, precision: str
) -> None:
    graph, spec = attention_graph(tmp_path / "model.onnx", head_size, dtype)
    heard = Heard()
    built = TensorRtRtxBuilder(heard).build(make_job(graph, spec, tmp_path / "set"))
    assert built.layers is not None
    (attention,) = built.layers.attentions
    assert not attention.fused
    assert attention.precision == precision
    (note,) = heard.notes
    assert "1 of 1 attentions have no kernel" in note
    assert "the_attention" in note


def test_only_the_attention_without_a_kernel_is_decomposed(tmp_path: Path) -> None:
    shapes = {"a": ("batch", 2, 16, 32), "b": ("batch", 2, 16, 8)}
    inputs = {f"{letter}{index}": (HALF, shape) for letter, shape in shapes.items() for index in range(3)}
    nodes = [helper.make_node("Attention", [f"{x}0", f"{x}1", f"{x}2"], [f"out_{x}"], name=x) for x in shapes]
    outputs = {f"out_{letter}": (HALF, shape) for letter, shape in shapes.items()}
    graph, spec = write(tmp_path / "model.onnx", nodes, inputs, outputs, {})
    built = TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set"))
    assert built.layers is not None
    assert {attention.name: attention.fused for attention in built.layers.attentions} == {"a": True, "b": False}


def test_a_warning_of_the_parser_is_said(tmp_path: Path) -> None:
    graph, spec = every_operator(tmp_path)
    (ids,) = (each for each in spec.inputs if each.dtype == "int64")
    # Simulates a runtime that binds another type: the advice to bind int64 would not be followed.
    others = tuple(each.model_copy(update={"dtype": "float32"}) if each == ids else each for each in spec.inputs)
    heard = Heard()
    TensorRtRtxBuilder(heard).build(make_job(graph, spec.model_copy(update={"inputs": others}), tmp_path / "set"))
    (note,) = heard.notes
    assert note.startswith("unet: tensorrt-rtx warns: ")
    assert note.endswith(f"Make sure input {ids.name} has Int64 binding.")


def test_an_interruption_stops_the_build_and_comes_out(tmp_path: Path) -> None:
    class Interrupting(Heard):
        def percent(self, done: int) -> None:
            super().percent(done)
            raise KeyboardInterrupt

    graph, spec = every_operator(tmp_path)
    heard = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        TensorRtRtxBuilder(heard).build(make_job(graph, spec, tmp_path / "set"))
    assert len(heard.percents) == 1
    assert not list((tmp_path / "set" / "unet").iterdir())


def test_an_unknown_operator_is_named_with_its_node_and_inputs(tmp_path: Path) -> None:
    shape = (FLOAT, ("batch", 4, 4))
    node = helper.make_node("Det", ["x"], ["y"], name="my_det")
    graph, spec = write(tmp_path / "model.onnx", [node], {"x": shape}, {"y": (FLOAT, ("batch",))}, {})
    with pytest.raises(EngineError, match=r"node my_det \(Det of x\).* no operator Det") as caught:
        TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set"))
    assert "remove Det from the graph" in caught.value.hint


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    shape = (FLOAT, ("batch", 4))
    node = helper.make_node("Foo", ["x"], ["y"], name="my_foo", domain="com.x")
    graph, spec = write(tmp_path / "model.onnx", [node], {"x": shape}, {"y": shape}, {}, domain="com.x")
    with pytest.raises(EngineError, match=r"node my_foo \(Foo of x\).* no operator Foo"):
        TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set"))


def test_mixed_types_are_refused_naming_the_node(tmp_path: Path) -> None:
    inputs = {"x": (FLOAT, ("batch", 4)), "z": (HALF, ("batch", 4))}
    node = helper.make_node("Add", ["x", "z"], ["y"], name="mixed")
    graph, spec = write(tmp_path / "model.onnx", [node], inputs, {"y": (FLOAT, ("batch", 4))}, {})
    with pytest.raises(EngineError, match=r"node mixed \(Add of x, z\).*same input types"):
        TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set"))


@pytest.mark.parametrize("content", [b"xx", b"", b"\x08\x0a" * 40])
def test_garbage_is_no_graph_although_the_parser_takes_it(tmp_path: Path, content: bytes) -> None:
    graph, spec = attention_graph(tmp_path / "model.onnx", 32)
    graph.write_bytes(content)
    with pytest.raises(EngineError, match="not a valid ONNX graph"):
        TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set"))


def test_a_fixed_batch_outside_the_profile_names_the_input(tmp_path: Path) -> None:
    shape = (FLOAT, (2, 4))
    node = helper.make_node("Sin", ["x"], ["y"])
    graph, spec = write(tmp_path / "model.onnx", [node], {"x": shape}, {"y": shape}, {})
    named = spec.model_copy(update={"inputs": (spec.inputs[0].model_copy(update={"shape": ("batch", 4)}),)})
    with pytest.raises(UsageError, match="input x has batch 2 in the graph; 1:1:4 is outside it"):
        TensorRtRtxBuilder().build(make_job(graph, named, tmp_path / "set"))
    two = BatchRange(min=2, opt=2, max=2)
    assert TensorRtRtxBuilder().build(make_job(graph, named, tmp_path / "set2", batch=two)).batch == two


def test_what_builds_nothing_reports_the_log(tmp_path: Path) -> None:
    # sm75 multiplies no fp32 matrices.
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    inputs = dict.fromkeys(("x", "z"), (TensorProto.FLOAT, ("batch", 16, 16)))
    graph, spec = write(tmp_path / "model.onnx", [node], inputs, {"y": (FLOAT, ("batch", 16, 16))}, {})
    recipe = RECIPE.model_copy(update={"targets": ("sm75",)})
    with pytest.raises(EngineError, match=r"cannot build unet: .*Error Code") as caught:
        TensorRtRtxBuilder().build(make_job(graph, spec, tmp_path / "set", recipe=recipe))
    assert tensorrt_rtx.__version__ in caught.value.message
