"""Token merging: the paper's algorithm in plain loops against the module, and the module against its graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Manifest
from sdrt.checkpoint import open_checkpoint
from sdrt.errors import CheckpointError, UsageError
from sdrt.export import export_bundle
from sdrt.export.check import TOLERANCES
from sdrt.export.components import TorchComponent, UNet, load_component
from sdrt.export.flops import count_flops
from sdrt.export.token_merging import BipartiteMatching, MergingBlock, destinations, merge_tokens
from sdrt.libraries.openvino import core
from tests.models.tiny import v1_config

Floats = npt.NDArray[np.float32]
SIDE, CHANNELS = 8, 16
#: Both sides compute the same operators in fp32 on a few dozen tokens.
ROUNDING = 1e-5


def merged_attention(tokens: Floats, values: Floats, chosen: npt.NDArray[np.int64], ratio: float) -> Floats:
    """Compute one picture's self-attention on merged tokens, token by token as in section 3 of the paper.

    Args:
        tokens: [tokens,channels], used for matching.
        values: [tokens,channels], merged and attended to.
        chosen: The destinations.
        ratio: Share of all tokens to merge.
    """
    sources = [token for token in range(len(tokens)) if token not in set(chosen)]
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    nearest = {source: max(chosen, key=lambda place: float(unit[source] @ unit[place])) for source in sources}
    sources.sort(key=lambda source: -float(unit[source] @ unit[nearest[source]]))
    count = min(int(len(tokens) * ratio), len(sources))
    groups = {place: [place] for place in chosen}
    for source in sources[:count]:
        groups[nearest[source]].append(source)
    groups |= {source: [source] for source in sources[count:]}
    means = np.stack([values[group].mean(axis=0) for group in groups.values()])
    scores = np.exp(means @ means.T)
    attended = scores / scores.sum(axis=1, keepdims=True) @ means
    out = np.zeros_like(values)
    for group, row in zip(groups.values(), attended, strict=True):
        out[group] = row
    return out


def attend(tokens: torch.Tensor) -> torch.Tensor:
    """Attend over the means, for `merged_attention`."""
    return torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1) @ tokens


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.74, 0.75])
@pytest.mark.parametrize("side", [SIDE, 7])
def test_it_is_the_papers_algorithm(ratio: float, side: int) -> None:
    matching = BipartiteMatching(side, ratio, number=3)
    tokens, values = random(3, side * side, CHANNELS), random(3, side * side, CHANNELS, seed=1)
    order, nearest = matching(tokens)
    merged = matching.merge(values, order, nearest)
    sources = side * side - (side // 2) ** 2
    assert merged.shape[1] == side * side - min(int(side * side * ratio), sources)
    found = matching.unmerge(attend(merged), order, nearest).numpy()
    # Each row of the batch by itself.
    rows = zip(tokens.numpy(), values.numpy(), strict=True)
    expected = np.stack([merged_attention(*row, destinations(side, 3), ratio) for row in rows])
    assert relative_l2(found, expected) < ROUNDING


@pytest.mark.parametrize("fault", ["least similar first", "another picture's", "other destinations"])
def test_another_matching_would_be_seen(fault: str) -> None:
    matching = BipartiteMatching(SIDE, 0.5, number=0)
    tokens, values = random(2, SIDE**2, CHANNELS), random(2, SIDE**2, CHANNELS, seed=1)
    order, nearest = matching(tokens.flip(0) if fault == "another picture's" else tokens)
    if fault == "least similar first":
        order = order.flip(1)
    found = matching.unmerge(attend(matching.merge(values, order, nearest)), order, nearest).numpy()
    chosen = destinations(SIDE, int(fault == "other destinations"))
    expected = merged_attention(tokens[0].numpy(), values[0].numpy(), chosen, 0.5)
    assert relative_l2(found[0], expected) > 1000 * ROUNDING


def test_one_of_each_square_is_a_destination() -> None:
    grid = np.zeros((SIDE, SIDE), int)
    grid.flat[destinations(SIDE, 0)] = 1
    assert (grid.reshape(SIDE // 2, 2, SIDE // 2, 2).sum(axis=(1, 3)) == 1).all()
    # All four places are drawn, and blocks differ.
    assert len({(token // 64 % 2, token % 2) for token in destinations(64, 0)}) == 4
    assert not np.array_equal(destinations(64, 0), destinations(64, 1))


def test_destinations_are_the_same_for_ever() -> None:
    """Pin them, since pictures depend on them."""
    assert [destinations(4, number).tolist() for number in (0, 1)] == [[3, 5, 8, 11], [5, 6, 9, 14]]


def block(ratio: float | None) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BasicTransformerBlock(CHANNELS, 2, CHANNELS // 2, cross_attention_dim=12).eval()
    return made if ratio is None else MergingBlock(made, BipartiteMatching(SIDE, ratio, 0)).eval()


def test_a_block_that_merges_nothing_is_the_plain_block() -> None:
    tokens, states = random(2, SIDE**2, CHANNELS), random(2, 5, 12, seed=1)
    with torch.no_grad():
        plain, nothing, half = (block(ratio)(tokens, encoder_hidden_states=states) for ratio in (None, 0.0, 0.5))
    assert relative_l2(nothing.numpy(), plain.numpy()) < ROUNDING
    assert relative_l2(half.numpy(), plain.numpy()) > 100 * ROUNDING


def test_equal_tokens_lose_nothing() -> None:
    """Check that flat areas cost nothing: means of equal tokens are those tokens."""
    tokens = random(1, (SIDE // 2) ** 2, CHANNELS).reshape(1, SIDE // 2, SIDE // 2, CHANNELS)
    tokens = tokens.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    states = random(1, 5, 12, seed=1)
    with torch.no_grad():
        plain, merged = (block(ratio)(tokens, encoder_hidden_states=states) for ratio in (None, 0.75))
    assert relative_l2(merged.numpy(), plain.numpy()) < ROUNDING


def meta_unet(**changes: Any) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config({**v1_config("unet"), **changes})
    return unet.eval()


def merging(unet: UNet2DConditionModel) -> dict[str, int]:
    """Return the number of tokens that each merging block merges."""
    found = {name: module for name, module in unet.named_modules() if isinstance(module, MergingBlock)}
    return {name: module.matching.merged for name, module in found.items()}


def test_of_sd_v1_the_outermost_level_merges() -> None:
    unet, plain = meta_unet(), meta_unet()
    assert merge_tokens(unet, 0.5) == 5
    blocks = ["down_blocks.0.attentions.0", "down_blocks.0.attentions.1"]
    blocks += [f"up_blocks.3.attentions.{index}" for index in range(3)]
    assert merging(unet) == {f"{name}.transformer_blocks.0": 2048 for name in blocks}
    # The names of the weights stay, and nothing joins them.
    assert list(unet.state_dict()) == list(plain.state_dict())


def test_the_work_saved_on_sd_v1() -> None:
    """Expect, of 0.803 TFLOP, 16.1 GFLOP of attention and 1.7 of projections less, and 3.4 more for merging."""
    inputs = {
        "sample": (None, (4, 64, 64)),
        "timestep": (torch.float32, ()),
        "encoder_hidden_states": (None, (77, 768)),
    }
    unet = meta_unet()
    merge_tokens(unet, 0.5)
    flops = count_flops(TorchComponent("unet", UNet(unet), inputs, ("out_sample", (4, 64, 64))))
    assert flops / 1e12 == pytest.approx(0.7311, abs=5e-5)


def test_without_attention_outside_the_highest_level_that_has_it_merges() -> None:
    down = ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]
    unet = meta_unet(down_block_types=down, up_block_types=up, layers_per_block=1)
    assert merge_tokens(unet, 0.25) == 3
    assert {name.split(".attentions")[0] for name in merging(unet)} == {"down_blocks.2", "up_blocks.1"}
    assert set(merging(unet).values()) == {64}


def test_what_cannot_merge_is_refused(tmp_path: Path, tiny_path: Path) -> None:
    no_attention = meta_unet(
        down_block_types=["DownBlock2D"] * 4, up_block_types=["UpBlock2D"] * 4, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(CheckpointError, match="no self-attention"):
        merge_tokens(no_attention, 0.5)
    with pytest.raises(CheckpointError, match=r"down_blocks\.0.* is not a block of SD v1's kind"):
        merge_tokens(meta_unet(only_cross_attention=True), 0.5)
    with pytest.raises(UsageError, match="merges none of 4096 tokens"):
        merge_tokens(meta_unet(), 1e-4)
    checkpoint = open_checkpoint(str(tiny_path))
    for ratio in (0.0, -0.5, 0.751, float("nan")):
        with pytest.raises(UsageError, match=r"above 0 and up to 0\.75") as refused:
            export_bundle(checkpoint, tmp_path / "bundle", token_merging=ratio)
        assert "0.5" in refused.value.hint
    with pytest.raises(UsageError, match="for the unet, which is not among the components"):
        export_bundle(checkpoint, tmp_path / "bundle", token_merging=0.5, components=["vae_decoder"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def merged_bundle(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("merged") / "bundle"
    return export_bundle(open_checkpoint(str(tiny_path)), folder, components=["unet"], token_merging=0.5)


def run(backend: str, path: Path, feeds: dict[str, npt.NDArray[Any]]) -> Floats:
    if backend == "onnxruntime":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found: Floats = session.run(None, feeds)[0]
        return found
    model = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(model(feeds)[0])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_is_the_merging_module(backend: str, batch: int, merged_bundle: Bundle, tiny_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    source, plain = load_component(checkpoint, "unet", 0.5), load_component(checkpoint, "unet")
    example = source.example(batch, torch.float32, seed=5)
    with torch.no_grad():
        expected, other = (each.module(**example).numpy() for each in (source, plain))
    found = run(backend, merged_bundle.graph("unet"), {name: value.numpy() for name, value in example.items()})
    assert relative_l2(found, expected) < TOLERANCES["fp32"]
    # It differs from the plain module, so the comparison would find a graph without merging.
    assert relative_l2(found, other) > 5 * TOLERANCES["fp32"]


def test_both_halves_share_what_comes_before_the_text(merged_bundle: Bundle) -> None:
    """Check that the first self-attention, merging included, is computed once a picture."""
    graph = onnx.load(merged_bundle.graph("denoise_step"), load_external_data=False).graph
    assert "Shape" not in {node.op_type for node in graph.node}
    once = {
        value.name
        for value in graph.value_info
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param == "batch"
    }
    merging_once = [node for node in graph.node if node.op_type == "TopK" and node.output[0] in once]
    assert len(merging_once) == 2
    assert sum(node.op_type == "TopK" for node in graph.node) > 2


def test_the_manifest_says_it_and_one_without_merging_says_nothing(merged_bundle: Bundle, tiny_bundle: Bundle) -> None:
    assert merged_bundle.manifest.token_merging == 0.5
    assert merged_bundle.manifest.components["unet"].flops < tiny_bundle.manifest.components["unet"].flops
    text = (tiny_bundle.path / "manifest.json").read_bytes()
    assert b"token_merging" not in text
    assert Manifest.model_validate_json(text).token_merging is None
    wrong = {**json.loads((merged_bundle.path / "manifest.json").read_bytes()), "token_merging": 0.8}
    with pytest.raises(ValueError, match="token_merging"):
        Manifest.model_validate(wrong)
