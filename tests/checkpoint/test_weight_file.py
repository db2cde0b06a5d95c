"""Weight files of other tools: types, names, surplus, adapters; equal to diffusers or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet
from sdrt.checkpoint.weights import find_weights
from sdrt.errors import CheckpointError
from tests.checkpoint.changes import Edit, Tensors, rewrite

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def opened(folder: Path, cache: Path, note: str) -> Any:
    """Open the checkpoint; assert that it gives the note and no other."""
    checkpoint = open_checkpoint(str(folder), cache=cache)
    assert len(checkpoint.notes) == 1, checkpoint.notes
    assert note in checkpoint.notes[0]
    assert "\n" not in checkpoint.notes[0]
    return checkpoint


@pytest.mark.parametrize(
    ("dtype", "note"),
    [
        (torch.float64, "narrowed 2 tensors (conv_in.weight, ...) from F64 to F32"),
        (torch.float8_e4m3fn, "widened 2 tensors (conv_in.weight, ...) from F8_E4M3 to F32"),
        (torch.float8_e5m2, "widened 2 tensors (conv_in.weight, ...) from F8_E5M2 to F32"),
    ],
)
def test_wide_and_narrow_types_become_float32_as_in_diffusers(
    copy: Path, cache: Path, dtype: torch.dtype, note: str
) -> None:
    names = ("conv_in.weight", f"{QUERY}.weight")
    rewrite(copy, "unet", lambda t: {k: v.double().add(1e-12).to(dtype) if k in names else v for k, v in t.items()})
    found = load_unet(opened(copy, cache, note)).state_dict()
    reference = UNet2DConditionModel.from_pretrained(copy, subfolder="unet", local_files_only=True).state_dict()
    assert {tensor.dtype for tensor in reference.values()} == {torch.float32}
    assert all(torch.equal(found[name], reference[name]) for name in reference)


def test_a_double_beyond_float32_is_refused(copy: Path, cache: Path) -> None:
    rewrite(copy, "unet", lambda t: {**t, "conv_in.bias": torch.full((32,), 1e300, dtype=torch.float64)})
    with pytest.raises(CheckpointError, match=r"unet/conv_in\.bias has 32 Inf"):
        load_unet(open_checkpoint(str(copy), cache=cache))


def test_a_whole_clip_is_the_text_encoder_in_it(copy: Path, cache: Path) -> None:
    expected = load_text_encoder(open_checkpoint(str(copy), cache=cache)).state_dict()
    parts = ("vision_model.post_layernorm.weight", "vision_model.embeddings.class_embedding", "logit_scale")
    extra = {name: torch.zeros(8) for name in (*parts, "visual_projection.weight", "text_projection.weight")}
    rewrite(copy, "text_encoder", lambda t: {**t, **extra})
    found = load_text_encoder(opened(copy, cache, "ignored 3 tensors")).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_clip_skip_by_num_hidden_layers_is_what_transformers_does(copy: Path, cache: Path, edit: Edit) -> None:
    whole = load_text_encoder(open_checkpoint(str(copy), cache=cache))
    edit("text_encoder/config.json", {"num_hidden_layers": 1})
    found = load_text_encoder(opened(copy, cache, "layers that num_hidden_layers leaves out"))
    reference: Any = CLIPTextModel.from_pretrained(copy, subfolder="text_encoder", local_files_only=True)
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    with torch.no_grad():
        states = [module(ids).last_hidden_state for module in (found, reference.eval(), whole)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])  # negative control: the layer matters


@pytest.mark.parametrize(
    ("component", "extra", "note"),
    [
        ("unet", {"model_ema.decay": torch.zeros(()), "model_ema.conv_inweight": torch.zeros(32)}, "EMA"),
        ("unet", {"optimizer.state.0.step": torch.zeros(()), "global_step": torch.zeros(())}, "2 tensors (global_step"),
        ("unet", {"conv_in.num_batches_tracked": torch.zeros((), dtype=torch.int64)}, "1 tensor (conv_in.num_batches"),
        ("vae", {"loss.logvar": torch.zeros(())}, "training"),
    ],
)
def test_what_training_left_is_passed_over(copy: Path, cache: Path, component: str, extra: Tensors, note: str) -> None:
    rewrite(copy, component, lambda t: {**t, **extra})
    opened(copy, cache, note)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrapped_names_are_repaired(copy: Path, cache: Path, prefix: str) -> None:
    expected = load_unet(open_checkpoint(str(copy), cache=cache)).state_dict()
    rewrite(copy, "unet", lambda t: {prefix + name: tensor for name, tensor in t.items()})
    found = load_unet(
        opened(copy, cache, f"removed a wrapper's prefix from {len(expected)} tensors ({prefix}")
    ).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "reason", "hint"),
    [
        (
            lambda t: {**t, f"{QUERY}.lora_A.default_0.weight": torch.zeros(4, 32)},
            f"holds a LoRA or another adapter that was left in: {QUERY}.lora_A.default_0.weight",
            "pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained",
        ),
        (
            lambda t: {**t, f"_orig_mod.{QUERY}.base_layer.weight": torch.zeros(4, 32)},
            "holds a LoRA",
            "pipe.fuse_lora()",
        ),
        (lambda t: {**t, "x.attn2.processor.to_k_ip.0.weight": torch.zeros(1)}, "an IP-Adapter", "unload_ip_adapter"),
        (lambda t: {**t, f"{QUERY}.weight_scale": torch.zeros(1)}, "holds a quantised copy", "fp32, fp16 or bf16"),
        (lambda t: {**t, "module.conv_in.bias": torch.zeros(32)}, "is there twice, under two names", "save the"),
    ],
)
def test_what_changes_the_network_is_refused_when_it_is_opened(
    copy: Path, cache: Path, change: Callable[[Tensors], Tensors], reason: str, hint: str
) -> None:
    rewrite(copy, "unet", change)
    with pytest.raises(CheckpointError, match=re.escape(reason)) as caught:
        open_checkpoint(str(copy), cache=cache)
    assert hint in caught.value.hint
    assert str(find_weights(copy, "unet")) in caught.value.message


def test_hints_fit_the_cause(copy: Path, cache: Path, edit: Edit) -> None:
    plain = load_file(find_weights(copy, "unet"))
    rewrite(copy, "unet", lambda t: {**t, "another.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unexpected tensor another\.weight, for which unet/config") as caught:
        load_unet(open_checkpoint(str(copy), cache=cache))
    assert "without the tensor" in caught.value.hint
    rewrite(copy, "unet", lambda _: {name.replace("conv_in", "conv_out_"): t for name, t in plain.items()})
    with pytest.raises(CheckpointError, match=r"unexpected tensor conv_out_\.bias") as caught:
        load_unet(open_checkpoint(str(copy), cache=cache))
    assert "do not belong to this config" in caught.value.hint
    rewrite(copy, "unet", lambda _: {**plain, "conv_in.bias": torch.zeros(32, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="F64, F8_E4M3, F8_E5M2") as caught:
        load_unet(open_checkpoint(str(copy), cache=cache))
    assert "fp32, fp16 or bf16" in caught.value.hint
