"""Configs changed at random: sdrt agrees with the libraries or refuses in one line; it never raises anything else.

The libraries accept a config.json if they can build its network and run it on Stable Diffusion v1's shapes. Both run
without memory for weights (torch's meta device), so a case takes milliseconds.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdrt.checkpoint import modules, open_checkpoint
from sdrt.checkpoint.config_fields import DECIDING
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.errors import CheckpointError
from sdrt.inspect.checkpoint import config_trees
from tests.checkpoint.changes import Edit

LOADERS: dict[str, Callable[..., Any]] = {"text_encoder": load_text_encoder, "unet": load_unet, "vae": load_vae}
DROPPED = object()
#: Values seen in real files, and values that no file should have.
VALUES: tuple[Any, ...] = (
    *(DROPPED, None, True, False, 0, 1, 2, 3, 5, 8, 32, 64, -1, 10**400, 1.0, 8.0, 0.5, math.nan, math.inf),
    *("", "x", "silu", "gelu", "quick_gelu", [], [8] * 4, [1] * 4, [1, 2, 3], [32] * 4, [None] * 4, [True] * 4),
    *([[1]] * 4, {}, {"a": math.nan}, ["DownBlock2D"] * 4, ["DownEncoderBlock2D"] * 3, [math.nan]),
)  # fmt: skip
#: Fields that no network reads: their values change nothing.
IDLE = {
    "unet": ["dropout", "final_loss", "addition_time_embed_dim", "_name_or_path"],
    "vae": ["sample_size", "force_upcast", "final_loss"],
    "text_encoder": ["attention_dropout", "initializer_range", "return_dict", "eos_token_id", "final_loss"],
}
CASES = [(component, field) for component in LOADERS for field in [*sorted(DECIDING[component]), *IDLE[component]]]


def built_by_the_library(component: str, folder: Path) -> bool:
    """Return whether the library builds the network of a config and runs it on v1's shapes."""
    raw = json.loads((folder / component / "config.json").read_text())
    try:
        with warnings.catch_warnings(action="ignore"), torch.device("meta"), torch.no_grad():
            if component == "unet":
                unet: Any = UNet2DConditionModel.from_config(raw)
                found = unet.eval()(torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 32)).sample
                return tuple(found.shape) == (1, 4, 64, 64)
            if component == "vae":
                vae: Any = AutoencoderKL.from_config(raw)
                latents = vae.eval().encode(torch.zeros(1, 3, 512, 512)).latent_dist.mean
                picture = vae.decode(latents / vae.config.scaling_factor).sample
                return (tuple(latents.shape), tuple(picture.shape)) == ((1, 4, 64, 64), (1, 3, 512, 512))
            text_encoder: Any = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / component))
            tokens = text_encoder.config.max_position_embeddings
            return tuple(text_encoder.eval()(torch.zeros(1, tokens, dtype=torch.int64))[0].shape) == (1, tokens, 32)
    except Exception:
        return False


@pytest.fixture
def configs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the tiny checkpoint with links for weights and networks that are built and run but not filled."""
    folder = tmp_path / "configs"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in tiny.rglob("*.safetensors"):
        (folder / path.relative_to(tiny)).symlink_to(path)
    monkeypatch.setattr(modules, "_load", lambda module, *_: module)
    return folder


def verdict(folder: Path, cache: Path, component: str) -> tuple[CheckpointError | None, CheckpointError | None]:
    """Return the error that refuses the network and its trees; otherwise assert that the trees count its weights."""
    try:
        checkpoint = open_checkpoint(str(folder), cache=cache)
        module = LOADERS[component](checkpoint)
    except CheckpointError as error:
        return error, None
    try:
        trees = config_trees(checkpoint.text_encoder, checkpoint.unet, checkpoint.vae)
    except CheckpointError as error:
        return None, error
    parts = {"vae": ("vae_encoder", "vae_decoder")}.get(component, (component,))
    assert sum(trees[part].parameters for part in parts) == sum(part.numel() for part in module.parameters())
    return None, None


def check(folder: Path, cache: Path, component: str, field: str, value: Any) -> str:
    """Compare the verdicts on one change, then restore the file."""
    path = folder / component / "config.json"
    before = path.read_text()
    config = {key: kept for key, kept in json.loads(before).items() if key != field}
    path.write_text(json.dumps(config if value is DROPPED else {**config, field: value}))
    refusal, inspection = verdict(folder, cache, component)
    built = refusal is not None or field not in DECIDING[component] or built_by_the_library(component, folder)
    path.write_text(before)
    case = f"{component}.{field} = {value!r}"
    assert built, case
    if inspection is not None:
        assert field in inspection.message, (case, inspection)
    if refusal is None:
        return "taken"
    assert field in refusal.message or "does not describe a network that can be" in refusal.message, (case, refusal)
    assert "\n" not in refusal.message, case
    assert refusal.hint, case
    return "refused"


@pytest.mark.parametrize("seed", [0])
def test_verdicts_on_random_changes(configs: Path, cache: Path, seed: int) -> None:
    draw = random.Random(seed)
    verdicts = [check(configs, cache, *draw.choice(CASES), draw.choice(VALUES)) for _ in range(25)]
    assert len(set(verdicts)) == 2  # negative control: some are accepted, some refused


@pytest.mark.long
@pytest.mark.parametrize(("component", "field"), CASES)
def test_verdicts_on_every_change(configs: Path, cache: Path, component: str, field: str) -> None:
    for value in VALUES:
        check(configs, cache, component, field, value)


@pytest.mark.parametrize("component", LOADERS)
def test_what_nobody_reads_may_hold_anything(configs: Path, cache: Path, component: str) -> None:
    values = (math.nan, math.inf, None, 10**400, "x", [[[[1]]]], {"a": math.nan}, True, [8] * 100)
    for number, value in enumerate(values):
        field = IDLE[component][number % len(IDLE[component])]
        assert check(configs, cache, component, field, value) == "taken", (field, value)


@pytest.mark.parametrize(
    ("component", "values"),
    [
        ("unet", {"attention_head_dim": [2, 2, 2, 2]}),
        ("unet", {"attention_head_dim": [2, 4, 8, 8]}),
        ("unet", {"cross_attention_dim": [32, 32, 32, 32]}),
        ("unet", {"layers_per_block": [1, 1, 1, 1], "transformer_layers_per_block": [1, 1, 1, 1]}),
        ("unet", {"only_cross_attention": [False] * 4, "upcast_attention": 0, "flip_sin_to_cos": 1}),
        ("unet", {"only_cross_attention": None, "_use_default_values": ["only_cross_attention", "freq_shift"]}),
        ("unet", {"freq_shift": 1, "_use_default_values": ["freq_shift"]}),
        ("unet", {"sample_size": 32, "_diffusers_version": "0.8.1"}),
        ("unet", {"class_embed_type": None, "num_class_embeds": None, "final_loss": math.nan}),
        ("vae", {"sample_size": 7, "force_upcast": "x", "use_quant_conv": 1}),
        ("text_encoder", {"return_dict": False, "output_hidden_states": True, "attention_dropout": math.nan}),
        ("text_encoder", {"model_type": None, "projection_dim": None, "pad_token_id": None, "bos_token_id": 0}),
    ],
)  # fmt: skip
def test_what_the_libraries_complete_computes_the_same(
    copy: Path, cache: Path, edit: Edit, component: str, values: dict[str, Any]
) -> None:
    edit(f"{component}/config.json", values)
    module = LOADERS[component](open_checkpoint(str(copy), cache=cache))
    reference = type(module).from_pretrained(copy, subfolder=component, local_files_only=True).eval()
    generator = torch.Generator().manual_seed(0)
    draw = {
        "unet": (torch.randn(1, 4, 64, 64, generator=generator), 500, torch.randn(1, 77, 32, generator=generator)),
        "vae": (torch.randn(1, 3, 64, 64, generator=generator),),
        "text_encoder": (torch.tensor([[49406, 320, 1125, 49407]]),),
    }[component]
    with torch.no_grad():
        found, expected = (network(*draw, return_dict=False)[0] for network in (module, reference))
    assert torch.equal(found, expected)


def test_a_config_of_a_whole_clip_is_its_text_config(copy: Path, cache: Path) -> None:
    path = copy / "text_encoder" / "config.json"
    plain = open_checkpoint(str(copy), cache=cache)
    text = json.loads(path.read_text())
    whole = {
        "model_type": "clip",
        "projection_dim": 32,
        "vision_config": {"x": math.nan},
        "logit_scale_init_value": 2.6,
    }
    path.write_text(json.dumps({**whole, "text_config": text}))
    found = open_checkpoint(str(copy), cache=cache)
    assert found.digest == plain.digest
    reference: Any = CLIPTextModel.from_pretrained(copy, subfolder="text_encoder", local_files_only=True)
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    with torch.no_grad():
        states = [module(ids).last_hidden_state for module in (load_text_encoder(found), reference.eval())]
    assert torch.equal(*states)


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_a_class_name_may_be_left_out(configs: Path, cache: Path, component: str) -> None:
    assert check(configs, cache, component, "_class_name", DROPPED) == "taken"
    assert check(configs, cache, component, "_class_name", "VQModel") == "refused"


def test_heads_that_do_not_divide_draw_as_in_diffusers_and_are_told_by_inspect(
    copy: Path, cache: Path, edit: Edit
) -> None:
    edit("unet/config.json", {"attention_head_dim": 3})
    checkpoint = open_checkpoint(str(copy), cache=cache)
    with pytest.raises(CheckpointError, match="attention_head_dim is 3; expected divisors of"):
        config_trees(checkpoint.text_encoder, checkpoint.unet, checkpoint.vae)
    with pytest.raises(CheckpointError, match=r"the config requires \[30"):
        load_unet(checkpoint)
