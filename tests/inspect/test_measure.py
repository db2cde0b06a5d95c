"""Times by block: every operator that runs belongs to one, and the blocks' times add up."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.errors import BackendUnavailableError, EngineError, ResourceError
from sdrt.inspect.block import Block, with_seconds
from sdrt.inspect.graph import graph_tree, load_graph
from sdrt.inspect.measure import measure, module_paths
from sdrt.progress import silent
from tests.inspect.scopes import marked
from tests.models.tiny_bundle import tiny_bundle as tiny_graphs

FLOAT = TensorProto.FLOAT


def graph(*nodes: NodeProto) -> GraphProto:
    image = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4, 8, 8]) for name in ("x", "y")]
    return helper.make_graph(list(nodes), "g", image[:1], image[1:])


ORIGINAL = graph(
    marked(helper.make_node("Conv", ["x", "w"], ["a"], name="node_conv"), "unet", "unet.conv_in"),
    marked(helper.make_node("GroupNormalization", ["a", "s", "b"], ["n"], name="node_norm"), "unet", "unet.norm"),
    marked(helper.make_node("Conv", ["n", "v"], ["y"], name="node_out"), "unet", "unet.conv_out"),
)


def test_operators_belong_where_their_names_and_results_say() -> None:
    optimised = graph(
        helper.make_node("ReorderInput", ["x"], ["reorder"], name="ReorderInput"),
        helper.make_node("Conv", ["reorder", "w"], ["token"], name="a_nchwc"),
        helper.make_node("ReorderOutput", ["token"], ["a"], name="ReorderOutput_token"),
        # The parts of a decomposed normalisation have no name; only its last result keeps the original's.
        helper.make_node("ReduceMean", ["a"], ["mean"]),
        helper.make_node("Sub", ["a", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "s"], ["n"]),
        helper.make_node("Conv", ["n", "v"], ["y"], name="node_out"),
        helper.make_node("Identity", ["y"], ["nobody"], name="idle"),
    )
    expected = ["conv_in", "conv_in", "conv_in", "norm", "norm", "norm", "conv_out", ""]
    assert module_paths("unet", ORIGINAL, optimised) == expected
    elsewhere = graph(marked(helper.make_node("Conv", ["x", "w"], ["a"], name="node_conv"), "unet", "unet.other"))
    assert module_paths("unet", elsewhere, optimised) != expected


def test_times_add_up_to_the_whole() -> None:
    leaf = Block("down.0.conv", "Conv2d", 1, 1, (), ())
    tree = Block("", "UNet", 2, 2, (), (), children=(Block("down.0", "Down", 1, 1, (), (), children=(leaf,)),))
    found = with_seconds(tree, {"down.0.conv": 1.0, "down.0.act": 2.0, "nowhere.at.all": 4.0, "": 8.0})
    assert [block.seconds for _, block in found.walk()] == [15.0, 3.0, 1.0]
    assert with_seconds(tree, {}).seconds == 0.0
    assert tree.seconds is None


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_block_that_computes_takes_time(name: ComponentName, tiny_bundle: Bundle) -> None:
    seconds = measure(tiny_bundle, name, 1, silent)
    assert all(taken >= 0 for taken in seconds.values())
    tree = with_seconds(graph_tree(name, load_graph(tiny_bundle.graph(name))), seconds)
    assert tree.seconds == pytest.approx(sum(seconds.values()), rel=1e-9)  # the same numbers in another order
    computing = [block for _, block in tree.walk() if block.flops and block.kind != "Attention"]
    assert computing
    idle = [block.name for block in computing if not block.seconds]
    # An operator is timed in whole microseconds: the tiniest products of the tiny checkpoint may take none.
    assert len(idle) <= len(computing) // 4


def test_what_does_not_fit_is_refused_before_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_graphs(tmp_path / "bundle")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ResourceError, match="has 0 MiB free"):
        measure(made, "vae_decoder", 1, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_graph_that_does_not_run_is_an_error_of_ours(tmp_path: Path) -> None:
    made = tiny_graphs(tmp_path / "bundle")
    decoder = made.manifest.components["vae_decoder"]
    wrong = tuple(each.model_copy(update={"shape": ("batch", 4, 3)}) for each in decoder.inputs)
    parts = {**made.manifest.components, "vae_decoder": decoder.model_copy(update={"inputs": wrong})}
    changed = replace(made, manifest=made.manifest.model_copy(update={"components": parts}))
    made.graph("vae_decoder")  # validated before its manifest changes
    with pytest.raises(EngineError, match="onnxruntime cannot run"):
        measure(changed, "vae_decoder", 1, silent)


def test_operators_that_are_not_the_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_graphs(tmp_path / "bundle")
    monkeypatch.setattr(
        "sdrt.inspect.measure.load_graph", lambda path: ORIGINAL if "optimised" in path.name else load_graph(path)
    )
    with pytest.raises(BackendUnavailableError, match="does not match its optimised graph"):
        measure(made, "vae_decoder", 1, silent)
