"""DeepCache's passes against PyTorch's UNet with its depth replaced, and refusals."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, DEEPCACHE, ComponentName, Precision
from sdrt.checkpoint import Checkpoint, open_checkpoint
from sdrt.checkpoint.modules import load_unet
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.export import deepcache, export_bundle, quantised_bundle
from sdrt.export.deepcache import TOLERANCES, add_deepcache, check_passes, find_cut, write_passes
from sdrt.files import sha256_file
from sdrt.graphs.contract import contract, specs
from tests.models.tiny import tiny_checkpoint
from tests.models.tiny_bundle import MODEL
from tests.models.tiny_bundle import tiny_bundle as write_bundle

Array = npt.NDArray[Any]
WITH_PASSES: tuple[ComponentName, ...] = (*COMPONENTS, *DEEPCACHE)
#: Relative L2 of an exported UNet and its features against PyTorch: see sdrt.export.check.TOLERANCES.
TORCH_TOLERANCE = 1e-4
#: The shallow pass's input, by PyTorch's name.
SHALLOW = (
    "conv_in",
    "time_embedding",
    "up_blocks.1.resnets.1",
    "up_blocks.1.attentions.1",
    "conv_norm_out",
    "conv_out",
)
#: Two levels, the upper one with attention as in SD v1: the cut removes no deeper ones.
UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}


def relative_l2(actual: Array, expected: Array) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def run(bundle: Bundle, component: ComponentName, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(bundle.graph(component), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


# On an exported UNet.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "cut", unet=UNET)))


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("plain") / "bundle", components=["unet"])


@pytest.fixture(scope="module")
def cut(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_deepcache(plain, tmp_path_factory.mktemp("cut") / "bundle")


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> Iterator[Any]:
    with torch.no_grad():
        yield load_unet(checkpoint)


def feeds_of(bundle: Bundle, seed: int, timestep: float) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    inputs = bundle.component("unet").inputs
    feeds = {spec.name: rng.standard_normal((2, *map(int, spec.shape[1:])), np.float32) for spec in inputs}
    return feeds | {"timestep": np.full(2, timestep, np.float32)}


def torch_run(unet: Any, feeds: dict[str, Array], features: Array | None = None) -> tuple[Array, Array]:
    """Return PyTorch's output and deep features; ``features``, if given, replace its own, as in DeepCache."""
    skip_channels = unet.config.block_out_channels[0]
    seen: list[torch.Tensor] = []

    def exchange(_module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        joined, *others = arguments
        seen.append(joined[:, :-skip_channels])
        if features is not None:
            joined = torch.cat([torch.from_numpy(features), joined[:, -skip_channels:]], dim=1)
        return (joined, *others)

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(exchange)
    try:
        output = unet(*(torch.from_numpy(feeds[name]) for name in ("sample", "timestep", "encoder_hidden_states")))
    finally:
        handle.remove()
    return output.sample.numpy(), seen[0].numpy()


def test_the_passes_are_deepcaches(cut: Bundle, unet: Any) -> None:
    before, now = feeds_of(cut, 0, 961.5), feeds_of(cut, 1, 920.3)
    ordinary = run(cut, "unet", before)
    whole = run(cut, "deepcache_whole", before)
    # The same nodes with one more output.
    assert relative_l2(whole["out_sample"], ordinary["out_sample"]) < TOLERANCES["fp32"]
    expected, features = torch_run(unet, before)
    assert relative_l2(whole["out_sample"], expected) < TORCH_TOLERANCE
    assert relative_l2(whole["deep_features"], features) < TORCH_TOLERANCE
    fresh = run(cut, "deepcache_shallow", {**before, "deep_features": whole["deep_features"]})
    assert relative_l2(fresh["out_sample"], whole["out_sample"]) < TOLERANCES["fp32"]
    stale = run(cut, "deepcache_shallow", {**now, "deep_features": whole["deep_features"]})
    expected, _ = torch_run(unet, now, features)
    assert relative_l2(stale["out_sample"], expected) < TORCH_TOLERANCE
    # The control: features of another sample and step are not those of this one.
    assert relative_l2(stale["out_sample"], torch_run(unet, now)[0]) > 100 * TORCH_TOLERANCE


def test_halves_of_guidance_keep_to_themselves(cut: Bundle) -> None:
    """Exchange rows' features: each row must give the other's numbers, so none depends on its neighbour."""
    feeds = feeds_of(cut, 0, 961.5)
    features = run(cut, "deepcache_whole", feeds)["deep_features"]
    both = run(cut, "deepcache_shallow", {**feeds, "deep_features": features})["out_sample"]
    second = {name: values[1:] for name, values in feeds.items()}
    alone = run(cut, "deepcache_shallow", {**second, "deep_features": features[1:]})["out_sample"]
    assert relative_l2(alone, both[1:]) < TOLERANCES["fp32"]
    assert relative_l2(alone, both[:1]) > 100 * TOLERANCES["fp32"]


def test_the_manifest_counts_what_the_shallow_pass_does(cut: Bundle, unet: Any) -> None:
    whole, shallow = (cut.component(name) for name in DEEPCACHE)
    ordinary = cut.component("unet")
    assert (whole.parameters, whole.flops) == (ordinary.parameters, ordinary.flops)
    assert whole.weights == shallow.weights == ordinary.weights
    counted = sum(weight.numel() for name in SHALLOW for weight in unet.get_submodule(name).parameters())
    assert shallow.parameters == counted
    row = {name: torch.from_numpy(values[:1]).to("meta") for name, values in feeds_of(cut, 0, 1.0).items()}
    # PyTorch does not count the CPU's own attention.
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(unet).to("meta")(**row)
    by_module = counter.get_flop_counts()
    prefix = type(unet).__name__
    assert shallow.flops == sum(sum(by_module.get(f"{prefix}.{name}", {}).values()) for name in SHALLOW)


def test_nothing_else_of_the_bundle_changes(cut: Bundle, plain: Bundle, tmp_path: Path) -> None:
    added = {f"unet/{name}.onnx" for name in DEEPCACHE}
    assert cut.manifest.files.keys() - plain.manifest.files.keys() == added
    assert all(cut.manifest.files[name] == record for name, record in plain.manifest.files.items())
    # The output depends on the graph alone, and a bundle with the passes may be cut again.
    again = add_deepcache(cut, tmp_path / "again")
    assert again.digest == cut.digest


# On graphs written by hand.


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", components=WITH_PASSES)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shallow_pass_is_held_against_the_whole_one(precision: Precision, tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "bundle", components=WITH_PASSES, precision=precision)
    passes = {name: made.component(name) for name in DEEPCACHE}
    assert check_passes(made.path, passes) < TOLERANCES[precision]
    path = made.path / "unet" / "deepcache_shallow.onnx"
    model = onnx.load(path, load_external_data=False)
    (join,) = (node for node in model.graph.node if node.op_type == "Concat")
    join.input[:] = [*join.input[::-1]]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(NumericError, match=r"deepcache_shallow differs from the whole UNet .* by (0\.[1-9]|[1-9])"):
        check_passes(made.path, passes)


def test_names_types_and_shapes_are_the_contract(bundle: Bundle) -> None:
    for name in DEEPCACHE:
        part = bundle.component(name)
        assert contract(name, part, MODEL) == (specs(part.inputs), specs(part.outputs))
        # A separate process reads the graph and checks it against the manifest.
        assert bundle.graph(name).name == f"{name}.onnx"
    shallow = bundle.component("deepcache_shallow")
    assert {spec.name: spec.shape for spec in shallow.inputs}["deep_features"] == ("batch", 6, 8, 8)
    for shape in (("batch", 6, 4, 4), ("batch", "channels", 8, 8), ("batch",)):
        features = shallow.inputs[-1].model_copy(update={"shape": shape})
        spoilt = shallow.model_copy(update={"inputs": (*shallow.inputs[:-1], features)})
        assert contract("deepcache_shallow", spoilt, MODEL) != (specs(spoilt.inputs), specs(spoilt.outputs))


def test_a_unet_without_skip_connections_is_refused(tmp_path: Path) -> None:
    flat = write_bundle(tmp_path / "flat")
    with pytest.raises(BundleError, match="has no skip connection"):
        add_deepcache(flat, tmp_path / "cut")
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def test_a_unet_whose_end_needs_more_of_its_depth_is_refused(bundle: Bundle) -> None:
    graph = onnx.load(bundle.graph("unet"), load_external_data=False).graph
    (at,) = (index for index, node in enumerate(graph.node) if node.op_type == "Concat")
    other = onnx.helper.make_node("Concat", ["deep", "entry"], ["other"], axis=1)
    graph.node.insert(at, other)
    graph.value_info.append(onnx.helper.make_tensor_value_info("other", 1, ("batch", 9, 8, 8)))
    assert find_cut(graph).deep == "deep"
    graph.node[-1].input[1] = "other"
    with pytest.raises(BundleError, match="depends on deeper levels"):
        find_cut(graph)


@pytest.mark.parametrize(
    ("name", "said"), [("deep", "deep features have the unexpected shape"), ("left", "no shape for left")]
)
def test_a_graph_without_shapes_is_refused(bundle: Bundle, name: str, said: str) -> None:
    graph = onnx.load(bundle.graph("unet"), load_external_data=False).graph
    kept = [value for value in graph.value_info if value.name != name]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    with pytest.raises(BundleError, match=said) as caught:
        find_cut(graph)
    assert caught.value.hint


def test_int8_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "precision": "int8"}))
    with pytest.raises(UsageError, match="is in int8; DeepCache needs a bundle in fp32 or fp16"):
        add_deepcache(Bundle.open(bundle.path), tmp_path / "cut")


def test_an_int8_form_has_no_passes(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "quantised")
    assert set(quantised_bundle._describe_components(bundle, tmp_path / "quantised")) == set(COMPONENTS)


def test_what_fails_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deepcache, "check_passes", fail)
    with pytest.raises(KeyboardInterrupt):
        add_deepcache(bundle, tmp_path / "cut")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_equal_graphs_give_equal_bytes(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path / "unet", tmp_path / "unet")
    write_passes(tmp_path / "unet" / "model.onnx", bundle.component("unet"))
    for name in DEEPCACHE:
        assert sha256_file(tmp_path / "unet" / f"{name}.onnx") == sha256_file(bundle.graph(name))
