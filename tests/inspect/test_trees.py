"""Trees from configs against the networks that diffusers and transformers build, on torch's meta device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdrt.checkpoint.configs import read_configs
from sdrt.checkpoint.sources import DEMO_FOLDER
from sdrt.errors import CheckpointError
from sdrt.export.components import TextEncoder, UNet, VaeDecoder, VaeEncoder
from sdrt.inspect.block import Block
from sdrt.inspect.checkpoint import config_trees
from sdrt.inspect.text_encoder import text_encoder_tree
from sdrt.inspect.unet import unet_tree
from sdrt.inspect.vae import decoder_tree
from tests.models import odd_checkpoints
from tests.models.tiny import TEXT_ENCODER, UNET, VAE, v1_config

#: kind, parameters, FLOPs, shape in, shape out.
Facts = tuple[str, int, int, tuple[int, ...], tuple[int, ...]]
Configs = dict[str, dict[str, Any]]
#: The wrapper's module of each component, whose name the tree omits.
HELD = ("unet.", "text_encoder.", "encoder.", "decoder.")


def configs(name: str) -> Configs:
    """Return configs of text_encoder, unet and vae: v1.4's, the demo checkpoint's, or an odd one's."""
    if name == "demo":
        return {part: config for part, config in read_configs(DEMO_FOLDER).items() if part != "scheduler"}
    found = {part: v1_config(part) for part in ("text_encoder", "unet", "vae")}
    if name != "v1.4":
        changes = odd_checkpoints()[name]
        found["unet"] |= {**UNET, **changes.get("unet", {})}
        found["vae"] |= {**VAE, **changes.get("vae", {})}
        found["text_encoder"] |= {**TEXT_ENCODER, **changes.get("text_encoder", {})}
    return found


def trees(found: Configs) -> dict[str, Block]:
    return config_trees(found["text_encoder"], found["unet"], found["vae"])


def wrappers(found: Configs) -> dict[str, tuple[torch.nn.Module, dict[str, torch.Tensor]]]:
    """Return each component as it is exported, with inputs of one sample, all without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(found["vae"]))
        unet = UNet2DConditionModel.from_config(dict(found["unet"]))
        text = CLIPTextModel(CLIPTextConfig(**found["text_encoder"]))
        latents, states = torch.empty(1, 4, 64, 64), torch.empty(1, 77, found["unet"]["cross_attention_dim"])
        ids, time = torch.zeros(1, 77, dtype=torch.int64), torch.empty(1)
        pictures = torch.empty(1, 3, 512, 512)
    return {
        "text_encoder": (TextEncoder(text), {"input_ids": ids}),
        "unet": (UNet(unet), {"sample": latents, "timestep": time, "encoder_hidden_states": states}),
        "vae_encoder": (VaeEncoder(vae), {"sample": pictures}),
        "vae_decoder": (VaeDecoder(vae), {"latent_sample": latents}),
    }


def first_tensor(values: object) -> torch.Tensor:
    """Return the first tensor of a module's input or output."""
    if isinstance(values, torch.Tensor):
        return values
    parts = values.values() if hasattr(values, "values") else values
    assert hasattr(parts, "__iter__")
    return next(first_tensor(part) for part in parts if not isinstance(part, (bool, type(None))))


def built(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Facts]:
    """Return the facts of every called module with weights, by its name in the trees."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def hook(name: str) -> Callable[..., None]:
        def seen(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> None:
            taken = tuple(first_tensor(args or kwargs).shape[1:])
            if name.startswith("encoder.down") and name.endswith("downsamplers.0.conv"):
                # The VAE's downsampler pads by a row and a column before its convolution; the tree has no padding.
                taken = (taken[0], taken[1] - 1, taken[2] - 1)
            shapes[name] = (taken, tuple(first_tensor(given).shape[1:]))

        return seen

    for name, part in module.named_modules():
        part.register_forward_hook(hook(name), with_kwargs=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**inputs)
    counts = counter.get_flop_counts()
    facts = {}
    for name, part in module.named_modules():
        parameters = sum(weights.numel() for weights in part.parameters())
        if not parameters or name not in shapes:
            continue
        flops = sum(counts.get(f"{type(module).__name__}.{name}" if name else "Global", {}).values())
        facts[name] = (type(part).__name__, parameters, flops, *shapes[name])
    return {strip(name): value for name, value in facts.items() if name + "." not in HELD and name}


def strip(name: str) -> str:
    held = next((start for start in HELD if name.startswith(start)), "")
    # CLIP's own encoder is in the text encoder: only the outermost name is removed.
    return name[len(held) :]


def told(tree: Block) -> dict[str, Facts]:
    """Return the facts of every block but the root."""
    return {
        block.name: (block.kind, block.parameters, block.flops, block.input, block.output)
        for _, block in tree.walk()
        if block.name
    }


@pytest.mark.parametrize("name", ["v1.4", "demo", *odd_checkpoints()])
def test_trees_equal_what_is_built(name: str) -> None:
    found = configs(name)
    wanted = wrappers(found)
    for component, tree in trees(found).items():
        module, inputs = wanted[component]
        assert told(tree) == built(module, inputs), component
        assert tree.parameters == sum(weights.numel() for weights in module.parameters())


def test_a_wrong_tree_is_found() -> None:
    found = configs("heads-by-level")
    module, inputs = wrappers(found)["unet"]
    right = built(module, inputs)
    # One more layer; narrower text; another channel count: each changes shapes or counts.
    for field, value in (
        ("layers_per_block", 2),
        ("cross_attention_dim", 47),
        ("block_out_channels", [24, 36, 48, 66]),
    ):
        wrong = unet_tree({**found["unet"], field: value}, 77)
        assert told(wrong) != right, field


def test_totals_equal_the_literature() -> None:
    found = trees(configs("v1.4"))
    # Rombach et al. 2022, model card of v1.4, and the field's usual figures: 859.52 M, 123.06 M, 83.65 M.
    assert found["unet"].parameters == 859_520_964
    assert found["text_encoder"].parameters == 123_060_480
    assert found["vae_encoder"].parameters + found["vae_decoder"].parameters == 83_653_863
    assert round(4 * found["unet"].parameters / 1e9, 1) == 3.4
    # 401.6 G multiply-adds a pass, attention included (field notes; 339 G leaves it out), and 2.51 TFLOP a picture.
    assert round(found["unet"].flops / 2e9, 1) == 401.6
    assert round(found["vae_decoder"].flops / 1e12, 2) == 2.51


def test_the_skips_of_v1_are_concatenated() -> None:
    joined = [block.joined for _, block in trees(configs("v1.4"))["unet"].walk() if block.joined]
    deep, wide = (1280, 1280), (640, 320)
    assert joined == [*[deep] * 5, (1280, 640), (1280, 640), (640, 640), wide, wide, (320, 320), (320, 320)]


def test_walks_no_deeper_than_asked() -> None:
    tree = text_encoder_tree(v1_config("text_encoder"))
    assert [level for level, _ in tree.walk(0)] == [0]
    assert max(level for level, _ in tree.walk(2)) == 2
    assert tree.plain(1)["children"][1]["children"] == []
    assert math.prod((2, *tree.children[1].input)) == 2 * 77 * 768


def test_shorter_prompts_leave_the_weights_as_they_are() -> None:
    found = configs("v1.4")
    whole = trees(found)
    short = config_trees(found["text_encoder"], found["unet"], found["vae"], max_tokens=40)
    for name in ("text_encoder", "unet"):
        assert short[name].parameters == whole[name].parameters
        assert short[name].flops < whole[name].flops
    assert short["text_encoder"].output == (40, 768)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mid_block_type", None),
        ("only_cross_attention", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("down_block_types", ["DownBlock2D"]),
        ("up_block_types", ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]),
        ("block_out_channels", [320, "640", 1280, 1280]),
        ("block_out_channels", []),
        ("layers_per_block", [2, 2]),
        ("layers_per_block", 10**9),
        ("transformer_layers_per_block", [1, 1, 1, [1]]),
    ],
)
def test_another_structure_is_refused_by_name(field: str, value: object) -> None:
    found = configs("v1.4")["unet"]
    with pytest.raises(CheckpointError, match=field) as caught:
        unet_tree({**found, field: value}, 77)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("field", "value"), [("layers_per_block", 0), ("up_block_types", ["UpDecoderBlock2D"]), ("block_out_channels", [0])]
)
def test_another_vae_is_refused_by_name(field: str, value: object) -> None:
    found = copy.deepcopy(configs("v1.4")["vae"]) | {field: value}
    with pytest.raises(CheckpointError, match=field):
        decoder_tree(found, 64)


@pytest.mark.parametrize("value", [None, 0, True, 1 << 40])
def test_a_text_encoder_without_number_of_layers_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        text_encoder_tree({**v1_config("text_encoder"), "num_hidden_layers": value})


def test_the_demo_is_as_its_folder_says() -> None:
    assert Path(DEMO_FOLDER, "unet", "config.json").exists()
    assert trees(configs("demo"))["unet"].kind == "UNet2DConditionModel"
