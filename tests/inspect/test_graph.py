"""Trees from graphs: a bundle's equal those of its checkpoint's configs; other graphs are not guessed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS
from sdrt.artefacts.store import Store
from sdrt.checkpoint.configs import read_configs
from sdrt.graphs.values import SCOPES
from sdrt.inspect.block import Block
from sdrt.inspect.checkpoint import config_trees
from sdrt.inspect.graph import MAX_DEPTH, graph_tree, load_graph
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from tests.inspect.scopes import marked
from tests.models import odd_checkpoints


def trees_of(folder: Path) -> dict[str, Block]:
    configs = read_configs(folder)
    return config_trees(configs["text_encoder"], configs["unet"], configs["vae"])


def without_positions(text_encoder: Block) -> Block:
    """Return the tree without a block for the position embedding: exporters fold such small look-ups."""
    embeddings, *others = text_encoder.children
    tokens, positions = embeddings.children
    assert (positions.kind, positions.parameters) == ("Embedding", 77 * positions.output[1])
    return replace(text_encoder, children=(replace(embeddings, children=(tokens,)), *others))


def assert_equal(bundle: Bundle, folder: Path) -> None:
    expected = trees_of(folder)
    for name in COMPONENTS:
        found = graph_tree(name, load_graph(bundle.graph(name)))
        # Whole trees: names, kinds, order, shapes, joins, weights and work of every block.
        assert found == (without_positions(expected[name]) if name == "text_encoder" else expected[name]), name
        described = bundle.manifest.components[name]
        # The manifest's figures were counted by torch, on the module before it was exported.
        assert (found.parameters, found.flops) == (described.parameters, described.flops)


def test_a_bundles_trees_equal_its_checkpoints(tiny_bundle: Bundle, tiny_path: Path) -> None:
    assert_equal(tiny_bundle, tiny_path)


@pytest.mark.long
@pytest.mark.parametrize("name", odd_checkpoints())
def test_odd_bundles_trees_equal_their_checkpoints(
    name: str, checkpoint_path: Callable[[str], Path], store: Store
) -> None:
    path = checkpoint_path(name)
    assert_equal(open_bundle(Source(checkpoint=str(path)), store), path)


def test_another_checkpoints_tree_differs(tiny_bundle: Bundle, checkpoint_path: Callable[[str], Path]) -> None:
    expected = trees_of(checkpoint_path("wide-two-layers"))["unet"]
    assert graph_tree("unet", load_graph(tiny_bundle.graph("unet"))) != expected


def a_graph(
    nodes: list[onnx.NodeProto], weights: dict[str, tuple[TensorProto.DataType, tuple[int, ...]]]
) -> onnx.GraphProto:
    """Build a graph from x [batch,4,8,8] to y [batch,6,8,8] through a middle m of y's shape."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])
    middle, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6, 8, 8]) for name in ("m", "y"))
    tensors = [TensorProto(name=name, data_type=kind, dims=dims) for name, (kind, dims) in weights.items()]
    return helper.make_graph(nodes, "g", [image], [result], tensors, value_info=[middle])


FLOAT, INT8 = TensorProto.FLOAT, TensorProto.INT8


def test_a_quantised_weight_counts_as_its_convolutions() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["plain"], name="dequantise"),
        marked(helper.make_node("Conv", ["x", "plain"], ["m"], name="conv"), "unet", "unet.conv_in"),
        marked(helper.make_node("Sigmoid", ["m"], ["y"], name="act"), "unet", "unet.conv_act"),
    ]
    tree = graph_tree("unet", a_graph(nodes, {"w": (INT8, (6, 4, 3, 3)), "scale": (FLOAT, ())}))
    (block,) = tree.children
    assert block == Block("conv_in", "Conv2d", 216, 2 * 216 * 64, (4, 8, 8), (6, 8, 8))
    assert (tree.parameters, tree.kind) == (216, "UNet2DConditionModel")


def test_a_graph_that_says_nothing_is_one_block() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["m"], name="conv"),
        helper.make_node("Add", ["m", "one"], ["y"], name="add"),
    ]
    graph = a_graph(nodes, {"w": (FLOAT, (6, 4, 1, 1)), "b": (FLOAT, (6,)), "one": (FLOAT, ())})
    tree = graph_tree("unet", graph)
    # An added scalar is no weight; a bias is.
    assert tree == Block("", "UNet2DConditionModel", 30, 2 * 24 * 64, (4, 8, 8), (6, 8, 8))


@pytest.mark.parametrize(("second", "counts"), [("unet.conv_in", [24]), ("unet.conv_out", [24, 24])])
def test_a_weight_counts_once_a_module(second: str, counts: list[int]) -> None:
    nodes = [
        marked(helper.make_node("Conv", ["x", "w"], ["m"], name="first"), "unet", "unet.conv_in"),
        marked(helper.make_node("Conv", ["x", "w"], ["y"], name="again"), "unet", second),
    ]
    tree = graph_tree("unet", a_graph(nodes, {"w": (FLOAT, (6, 4, 1, 1))}))
    # Exporters merge equal weights of two modules, such as biases of zeros; each has its own nevertheless.
    assert [child.parameters for child in tree.children] == counts
    assert (tree.parameters, tree.flops) == (sum(counts), 2 * 2 * 24 * 64)


@pytest.mark.parametrize("scopes", ["[" * 5000, "{'a': 1}", "['unet']", "unet.conv_in", "['', 'unet', 1"])
def test_scopes_that_no_exporter_writes_do_no_harm(scopes: str) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    node.metadata_props.add(key=SCOPES, value=scopes)
    tree = graph_tree("unet", a_graph([node], {"w": (FLOAT, (6, 4, 1, 1))}))
    assert tree.parameters == 24


def test_modules_in_modules_end() -> None:
    node = marked(helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), ".".join(["a"] * 5000))
    tree = graph_tree("unet", a_graph([node], {"w": (FLOAT, (6, 4, 1, 1))}))
    assert max(level for level, _ in tree.walk()) == MAX_DEPTH
