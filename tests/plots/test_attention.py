"""Attention recomputed from the bundle's graph: the marked tensors, the weights, and the maps of words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.checkpoint import open_checkpoint
from sdrt.errors import BackendUnavailableError, BundleError, UsageError
from sdrt.install_lines import extra_line
from sdrt.pipeline import Pipeline
from sdrt.plots import marked_graph
from sdrt.plots.attention import Attention, Sums, WordMap, attend, draw_attention, overlaid, word_maps
from sdrt.plots.marked_graph import MarkedUnet, attention_weights, mark
from sdrt.plots.model import Model
from sdrt.progress import silent
from sdrt.runtime.text import Tokenizer, Word

Array = npt.NDArray[Any]
# float32 on both sides, summed in another order by another library; weights are at most 1.
ROUNDING = 1e-5
SEED = 3


def feeds(batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    return {
        "sample": rng.standard_normal((batch, 4, 64, 64), np.float32),
        "timestep": np.linspace(100, 900, batch, dtype=np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, 77, 32), np.float32),
    }


@pytest.fixture
def seen() -> dict[int, list[Array]]:
    return defaultdict(list)


@pytest.fixture
def unet(tiny_bundle: Bundle, seen: dict[int, list[Array]]) -> Iterator[MarkedUnet]:
    with MarkedUnet(tiny_bundle, 1, lambda index, weights: seen[index].append(weights)) as opened:
        yield opened


def torch_weights(path: Path, given: dict[str, Array]) -> dict[str, Array]:
    """Return the weights [batch,heads,q,k] of each cross-attention as diffusers computes them."""
    import torch

    from sdrt.checkpoint.modules import load_unet

    found: dict[str, Array] = {}
    unet = load_unet(open_checkpoint(str(path)))

    class Keeping:
        """diffusers' AttnProcessor, reduced to the lines that compute the weights."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
            states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key, value = (
                attn.head_to_batch_dim(layer(each))
                for layer, each in ((attn.to_q, hidden_states), (attn.to_k, states), (attn.to_v, states))
            )
            weights = attn.get_attention_scores(query, key, None)
            if encoder_hidden_states is not None:
                found[self.name] = weights.unflatten(0, (len(hidden_states), -1)).numpy()
            return attn.to_out[0](attn.batch_to_head_dim(weights @ value))

    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.set_processor(Keeping(name))
    with torch.no_grad():
        unet(**{name: torch.from_numpy(array) for name, array in given.items()})
    return found


def test_the_weights_are_those_of_diffusers(unet: MarkedUnet, seen: dict[int, list[Array]], tiny_path: Path) -> None:
    given = feeds(2)
    unet.run(**given)
    expected = torch_weights(tiny_path, given)
    assert [f"{each.name}.attn2" for each in unet.attentions] == list(expected)
    assert len(expected) > 3
    for index, wanted in enumerate(expected.values()):
        (found,) = seen[index]
        assert found.shape == wanted.shape[1:]
        assert np.abs(found - wanted[-1]).max() < ROUNDING
        # The other half of the batch has another prompt, and so other weights.
        assert np.abs(found - wanted[0]).max() > 10 * ROUNDING


def test_marking_changes_nothing(unet: MarkedUnet, model: Model) -> None:
    given = feeds(1)
    marked, plain = unet.run(**given), model.unet.run(**given)
    assert marked.keys() == plain.keys()
    # One graph, optimised with and without the marked tensors: fp32 sums in another order.
    assert np.abs(marked["out_sample"] - plain["out_sample"]).max() < 1e-3
    assert np.abs(plain["out_sample"]).max() > 0.1


def test_self_attentions_are_left_alone(tiny_bundle: Bundle) -> None:
    model = onnx.load(tiny_bundle.graph("unet"), load_external_data=False)
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    found = mark(model)
    assert len(found) * 2 == len(attentions)
    assert {each.keys for each in found} < {node.input[1] for node in attentions}
    assert model.graph.output[0].name == "out_sample"
    assert len(model.graph.output) == 1 + 2 * len(found)


def test_a_graph_without_whole_attention_is_refused(tiny_bundle: Bundle) -> None:
    model = onnx.load(tiny_bundle.graph("unet"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.op_type = "MatMul"
    with pytest.raises(BundleError, match=r"opset 23") as caught:
        mark(model)
    assert "--opset" in caught.value.hint


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_what_marks_a_graph_the_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marked_graph.check_markable()
    monkeypatch.setattr(marked_graph, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(BackendUnavailableError, match=f"^{missing} is needed") as caught:
        marked_graph.check_markable()
    assert caught.value.hint == extra_line("cpu", "plot")


def test_weights_are_shares_whatever_the_scores() -> None:
    rng = np.random.default_rng(0)
    queries, keys = rng.standard_normal((2, 3, 5, 4), np.float32)
    weights = attention_weights(queries, keys, None)
    assert weights.shape == (3, 5, 5)
    assert np.allclose(weights.sum(axis=-1), 1, atol=ROUNDING)
    scores = np.exp(queries[1, 2] @ keys[1].T / 2)
    assert np.allclose(weights[1, 2], scores / scores.sum(), atol=ROUNDING)
    assert np.allclose(attention_weights(queries, keys, 0.0), 0.2)
    sharp = attention_weights(queries * np.float32(1e4), keys, 1.0)
    assert np.isfinite(sharp).all()
    assert np.allclose(sharp.sum(axis=-1), 1, atol=ROUNDING)


def test_sums_average_heads_and_runs() -> None:
    sums = Sums()
    sums.add(1, np.full((2, 3, 4), 0.5, np.float32))
    sums.add(0, np.stack([np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)]))
    sums.add(1, np.full((2, 3, 4), 1.0, np.float32))
    first, second = sums.means()
    assert (first == 0.5).all()
    assert (second == 0.75).all()


def test_a_words_map_is_the_mean_of_its_layers() -> None:
    fine, coarse = np.zeros((16, 6), np.float32), np.zeros((4, 6), np.float32)
    # In both layers the left half attends to tokens 1 and 2, the right half to 4.
    for layer, side in ((fine, 4), (coarse, 2)):
        square = layer.reshape(side, side, 6)
        square[:, : side // 2, 1] = 0.25
        square[:, : side // 2, 2] = 0.5
        square[:, side // 2 :, 4] = 1.0
    left, right = word_maps((Word("left", (1, 2)), Word("right", (4,))), [fine, coarse])
    assert left.attention.shape == right.attention.shape == (4, 4)
    assert left.attention[:, 0] == pytest.approx(0.75)
    assert right.attention[:, 3] == pytest.approx(1.0)
    assert left.attention[:, 3].max() < 0.2
    assert left.by_layer == pytest.approx((0.375, 0.375))
    assert left.share + right.share == pytest.approx(0.875)


@pytest.fixture
def tokenizer(tiny_bundle: Bundle) -> Tokenizer:
    return Tokenizer.open(tiny_bundle.path / "tokenizer" / "tokenizer.json", 77)


def test_words_are_the_prompts_own_with_their_tokens(tokenizer: Tokenizer) -> None:
    prompt = "A large  antidisestablishment, 绿"
    words = tokenizer.words(prompt)
    assert [word.text for word in words] == ["A", "large", "antidisestablishment", ",", "绿"]
    positions = [position for word in words for position in word.positions]
    assert positions == list(range(1, len(positions) + 1))
    assert len(words[2].positions) > 1
    ids = tokenizer.encode([prompt, "large"]).input_ids
    assert ids[0, words[1].positions[0]] == ids[1, 1]
    assert tokenizer.words(" ") == ()


def test_words_that_do_not_fit_are_left_out(tokenizer: Tokenizer) -> None:
    words = tokenizer.words("red " * 80)
    assert len(words) == 75
    assert words[-1].positions == (75,)


def test_the_picture_is_the_pipelines_and_its_words_are_heard(model: Model, tiny_bundle: Bundle) -> None:
    found = attend(
        model,
        tiny_bundle,
        prompt="a red circle",
        num_inference_steps=3,
        guidance_scale=2.0,
        seed=SEED,
        threads=1,
        progress=silent,
    )
    with Pipeline(model.engines, loop="plain") as pipeline:
        drawn = pipeline("a red circle", seed=SEED, num_inference_steps=3, guidance_scale=2.0).images[0]
    # Two builds of one graph in fp32: a level of 255 apart where a value lies between two.
    assert np.abs(np.asarray(found.picture, np.int16) - np.asarray(drawn, np.int16)).max() <= 1
    numbers = found.numbers()
    assert [each["word"] for each in numbers["words"]] == ["a", "red", "circle"]
    assert numbers["rest_share"] + sum(each["share"] for each in numbers["words"]) == pytest.approx(1, abs=1e-4)
    assert all(len(each["share_by_layer"]) == len(numbers["layers"]) for each in numbers["words"])
    assert len(numbers["words"][0]["map"]) == len(numbers["words"][0]["map"][0]) == 32


def test_a_prompt_without_words_is_refused(model: Model, tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no words"):
        attend(
            model,
            tiny_bundle,
            prompt="  ",
            num_inference_steps=3,
            guidance_scale=2.0,
            seed=SEED,
            threads=1,
            progress=silent,
        )


def test_a_figure_has_the_picture_each_word_and_a_scale() -> None:
    rising = np.linspace(0, 0.5, 64, dtype=np.float32).reshape(8, 8)
    maps = (WordMap("red", rising, (0.25,)), WordMap("x" * 40, np.full((8, 8), 0.1, np.float32), (0.1,)))
    figure = draw_attention(Attention(Image.new("RGB", (64, 64), "white"), maps, 0.65, ("mid",)), "a prompt", "how")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["picture", "red: 0.0% to 50.0%", "xxxxxxxxxxxxx…: 10.0% to 10.0%", ""]
    assert figure.axes[-1].get_ylabel() == "attention to the word"


def test_an_overlay_is_brightest_where_attention_is_highest() -> None:
    rising = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    mixed = np.asarray(overlaid(Image.new("RGB", (64, 64), "grey"), rising), np.int16).sum(axis=-1)
    assert mixed[-1, -1] > mixed[32, 32] > mixed[0, 0]
    flat = np.asarray(overlaid(Image.new("RGB", (64, 64), "grey"), np.full((8, 8), 0.3, np.float32)))
    assert (flat == flat[0, 0]).all()
