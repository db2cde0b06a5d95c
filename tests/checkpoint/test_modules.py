"""Loading: equal to diffusers and transformers, old names, fp16, and fault-matrix row 4."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.checkpoint.weights import find_weights
from sdrt.errors import CheckpointError
from tests.checkpoint.changes import Edit, Tensors, rewrite

LOADERS: dict[str, Callable[..., Any]] = {"text_encoder": load_text_encoder, "unet": load_unet, "vae": load_vae}


def refused(folder: Path, cache: Path, component: str, reason: str) -> None:
    """Assert that the checkpoint opens but does not load, for the reason."""
    checkpoint = open_checkpoint(str(folder), cache=cache)
    with pytest.raises(CheckpointError, match=re.escape(reason)) as caught:
        LOADERS[component](checkpoint)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("component", LOADERS)
def test_equal_to_the_libraries_own_loaders(
    tiny: Path, cache: Path, component: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        module = LOADERS[component](open_checkpoint(str(tiny), cache=cache))
    assert capfd.readouterr() == ("", "")  # no bars, no warnings
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    reference = type(module).from_pretrained(tiny, subfolder=component, local_files_only=True).state_dict()
    state = module.state_dict()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[name], reference[name]) for name in state)
    assert not module.training
    tensors = [*module.parameters(), *module.buffers()]
    assert all(not tensor.is_meta and not tensor.requires_grad for tensor in tensors)
    assert all(tensor.dtype == torch.float32 for tensor in module.parameters())


def test_text_encoder_computes_what_transformers_computes(tiny: Path, cache: Path) -> None:
    from transformers import CLIPTextModel

    ids = torch.tensor([[49406, 320, 1125, 49407, *[49407] * 73]])
    ours = load_text_encoder(open_checkpoint(str(tiny), cache=cache))
    reference: Any = CLIPTextModel.from_pretrained(tiny, subfolder="text_encoder", local_files_only=True)
    reference.eval()
    with torch.no_grad():
        found, expected = ours(ids).last_hidden_state, reference(ids).last_hidden_state
    assert torch.equal(found, expected)
    assert expected.std() > 0.1  # negative control: not all zeros


def test_vae_attention_under_the_names_of_v1_4s_files(copy: Path, cache: Path) -> None:
    expected = load_vae(open_checkpoint(str(copy), cache=cache)).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            for new, before in old.items():
                if ".attentions." in name and f".{new}." in name:
                    name = name.replace(new, before)
                    tensor = tensor[:, :, None, None] if tensor.ndim == 2 and before == "query" else tensor
            renamed[name] = tensor
        return renamed

    rewrite(copy, "vae", rename)
    names = load_file(find_weights(copy, "vae"))
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in names
    found = load_vae(open_checkpoint(str(copy), cache=cache)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefixed", [True, False])
def test_text_encoder_with_and_without_its_prefix_and_with_harmless_extras(
    copy: Path, cache: Path, prefixed: bool
) -> None:
    expected = load_text_encoder(open_checkpoint(str(copy), cache=cache)).state_dict()
    prefix = "text_model." if prefixed else ""

    def rename(tensors: Tensors) -> Tensors:
        renamed = {prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        return {**renamed, "text_model.embeddings.position_ids": torch.arange(77)[None]}

    rewrite(copy, "text_encoder", rename)
    found = load_text_encoder(open_checkpoint(str(copy), cache=cache)).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(copy: Path, cache: Path, dtype: torch.dtype) -> None:
    before = load_file(find_weights(copy, "vae"))
    rewrite(copy, "vae", lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    state = load_vae(open_checkpoint(str(copy), cache=cache)).state_dict()
    assert all(torch.equal(state[name], before[name].to(dtype).float()) for name in state)
    assert any(not torch.equal(state[name], before[name]) for name in state)  # negative control: it was rounded


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_row_4_nan_and_inf_are_counted_and_named(copy: Path, cache: Path, component: str, dtype: torch.dtype) -> None:
    name = {"text_encoder": "text_model.final_layer_norm.weight"}.get(component, "quant_conv.weight")
    name = "conv_in.weight" if component == "unet" else name

    def damage(tensors: Tensors) -> Tensors:
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        tensors[name].view(-1)[:12] = torch.nan
        tensors[name].view(-1)[12:15] = -torch.inf
        return tensors

    rewrite(copy, component, damage)
    refused(copy, cache, component, f"{component}/{name} has 12 NaN and 3 Inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith("conv_out")}, "2 tensors are missing, the first is"),
        (lambda t: {**t, "down_blocks.9.x": torch.zeros(1)}, "unexpected tensor down_blocks.9.x"),
        (lambda t: {**t, "conv_in.bias": torch.zeros(33)}, "conv_in.bias has shape [33]; the config requires [32]"),
        (lambda t: {**t, "conv_in.bias": torch.zeros(32, 1)}, "conv_in.bias has shape [32, 1]; the config requires"),
        (lambda t: {**t, "conv_in.bias": torch.zeros(32, dtype=torch.int8)}, "conv_in.bias is I8; expected F32, F16"),
    ],
)
def test_tensors_that_do_not_fit_the_network(
    copy: Path, cache: Path, change: Callable[[Tensors], Tensors], reason: str
) -> None:
    rewrite(copy, "unet", change)
    refused(copy, cache, "unet", reason)


def test_one_tensor_under_two_names(copy: Path, cache: Path) -> None:
    rewrite(copy, "text_encoder", lambda t: {**t, "final_layer_norm.bias": torch.zeros(32)})
    refused(copy, cache, "text_encoder", "final_layer_norm.bias is there twice")


@pytest.mark.parametrize(
    ("component", "values"),
    [
        ("unet", {"block_out_channels": "wide"}),
        ("unet", {"down_block_types": ["NoSuchBlock"] * 4}),
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"norm_num_groups": 7}),
        ("vae", {"block_out_channels": [8, 8, 16, None]}),
        ("vae", {"act_fn": "no such function"}),
        ("text_encoder", {"hidden_act": "no such function"}),
    ],
)
def test_configs_that_describe_no_network(
    copy: Path, cache: Path, edit: Edit, component: str, values: dict[str, Any]
) -> None:
    edit(f"{component}/config.json", values)
    refused(copy, cache, component, f"{component}/config.json does not describe a network that can be built")


def test_absurd_sizes_are_refused_without_the_memory_for_them(copy: Path, cache: Path, edit: Edit) -> None:
    edit("text_encoder/config.json", {"vocab_size": 10**6, "intermediate_size": 10**6})  # the largest allowed
    refused(copy, cache, "text_encoder", "the config requires [1000000, 32]")


def test_keys_that_no_library_knows_are_not_talked_about(
    copy: Path, cache: Path, edit: Edit, capfd: pytest.CaptureFixture[str]
) -> None:
    edit("unet/config.json", {"optimization_step": 1000, "decay": 0.9999, "_name_or_path": "somewhere"})
    assert load_unet(open_checkpoint(str(copy), cache=cache)).config.in_channels == 4
    assert capfd.readouterr() == ("", "")
    assert json.loads((copy / "unet" / "config.json").read_text())["decay"] == 0.9999
