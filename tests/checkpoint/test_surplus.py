"""Names of tensors that a network lacks: every kind is recognised, and no network's own name is taken for one."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdrt.checkpoint import surplus
from sdrt.checkpoint.surplus import SurplusKind, surplus_kind, unwrapped

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"
KINDS: dict[tuple[str, str], SurplusKind] = {
    ("unet", f"{BLOCK}.to_q.lora_A.default_0.weight"): surplus.LORA,
    ("unet", f"{BLOCK}.to_q.base_layer.weight"): surplus.LORA,
    ("unet", f"{BLOCK}.to_q.lora_magnitude_vector.default.weight"): surplus.LORA,
    ("unet", f"{BLOCK}.processor.to_q_lora.down.weight"): surplus.LORA,
    ("unet", f"{BLOCK}.to_q.lora.up.weight"): surplus.LORA,
    ("unet", f"{BLOCK}.to_q.hada_w1_a"): surplus.LORA,
    ("unet", f"{BLOCK}.to_q.lokr_w2"): surplus.LORA,
    ("unet", f"base_model.model.{BLOCK}.to_q.weight"): surplus.LORA,
    ("text_encoder", f"{LAYER}.lora_linear_layer.up.weight"): surplus.LORA,
    ("", "lora_unet_down_blocks_0_attentions_0_proj_in.alpha"): surplus.LORA,
    ("unet", f"{BLOCK.replace('attn1', 'attn2')}.processor.to_k_ip.0.weight"): surplus.IP_ADAPTER,
    ("unet", "encoder_hid_proj.image_projection_layers.0.norm.weight"): surplus.IP_ADAPTER,
    ("unet", f"{BLOCK}.processor.to_k_custom_diffusion.weight"): surplus.CUSTOM_DIFFUSION,
    ("unet", "down_blocks.0.motion_modules.0.norm.weight"): surplus.MOTION,
    ("unet", "time_embedding.cond_proj.weight"): surplus.GUIDANCE_EMBEDDING,
    ("unet", f"{BLOCK}.to_q.weight.absmax"): surplus.QUANTISED,
    ("unet", f"{BLOCK}.to_q.weight.quant_state.bitsandbytes__nf4"): surplus.QUANTISED,
    ("unet", f"{BLOCK}.to_q.weight._scale"): surplus.QUANTISED,
    ("unet", f"{BLOCK}.to_q.scale_weight"): surplus.QUANTISED,
    ("unet", "scaled_fp8"): surplus.QUANTISED,
    ("unet", f"{BLOCK}.to_q.parametrizations.weight.original0"): surplus.PARAMETRIZED,
    ("unet", "conv_in.weight_orig"): surplus.PARAMETRIZED,
    ("text_encoder", "text_model.embeddings.position_ids"): surplus.POSITION_IDS,
    ("text_encoder", "text_projection.weight"): surplus.PROJECTION,
    ("text_encoder", "logit_scale"): surplus.PROJECTION,
    ("text_encoder", "vision_model.embeddings.position_ids"): surplus.POSITION_IDS,
    ("text_encoder", "vision_model.post_layernorm.weight"): surplus.VISION,
    ("text_encoder", "visual_projection.weight"): surplus.VISION,
    ("text_encoder", "text_model.encoder.layers.11.mlp.fc1.weight"): surplus.SKIPPED_LAYERS,
    ("text_encoder", "encoder.layers.12.mlp.fc1.weight"): surplus.SKIPPED_LAYERS,
    ("unet", "model_ema.decay"): surplus.EMA,
    ("", "model_ema.diffusion_modelinput_blocks00weight"): surplus.EMA,
    ("unet", "conv_in.num_batches_tracked"): surplus.TRAINING,
    ("unet", "optimizer.state.0.exp_avg"): surplus.TRAINING,
    ("unet", "global_step"): surplus.TRAINING,
    ("unet", "decay"): surplus.TRAINING,
    ("unet", "optimization_step"): surplus.TRAINING,
    ("vae", "loss.discriminator.main.0.weight"): surplus.TRAINING,
    ("", "sqrt_one_minus_alphas_cumprod"): surplus.SCHEDULE,
    ("", "sqrt_recipm1_alphas_cumprod"): surplus.SCHEDULE,
    ("", "alphas_cumprod_prev"): surplus.SCHEDULE,
    ("", "log_one_minus_alphas_cumprod"): surplus.SCHEDULE,
    ("", "posterior_mean_coef1"): surplus.SCHEDULE,
}
HARMLESS = {
    surplus.POSITION_IDS,
    surplus.PROJECTION,
    surplus.VISION,
    surplus.SKIPPED_LAYERS,
    surplus.EMA,
    surplus.TRAINING,
    surplus.SCHEDULE,
}


@pytest.mark.parametrize(("component", "name"), KINDS)
def test_kinds(component: str, name: str) -> None:
    kind = surplus_kind(component, name, layers=11)
    assert kind == KINDS[component, name]
    assert (kind.hint is None) == (kind in HARMLESS)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("unet", "conv_in.weigth"),
        ("unet", "vision_model.post_layernorm.weight"),
        ("unet", "down_blocks.9.x"),
        ("unet", "loss.discriminator.main.0.weight"),
        ("vae", "text_projection.weight"),
        ("text_encoder", "text_model.encoder.layers.10.mlp.fc1.weight"),
        ("unet", "a." * 300 + "num_batches_tracked"),
    ],
)
def test_what_no_kind_has(component: str, name: str) -> None:
    assert surplus_kind(component, name, layers=11) is None


def test_no_tensor_of_a_network_is_surplus() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=32)
        vae = AutoencoderKL()
        text = CLIPTextModel(CLIPTextConfig(num_hidden_layers=2))
    for component, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        names = module.state_dict()
        assert names
        assert [name for name in names if surplus_kind(component, name, layers=2) is not None] == []
        assert all(unwrapped(name) == name for name in names)


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.a.module.weight",
        "module.a.module.weight",
        "module._orig_mod.a.module.weight",
        "_orig_mod.module.a.module.weight",
        "a._orig_mod.module.weight",
        "_fsdp_wrapped_module.a._fsdp_wrapped_module._checkpoint_wrapped_module.module.weight",
    ],
)
def test_names_that_wrappers_changed(wrapped: str) -> None:
    assert unwrapped(wrapped) == "a.module.weight"
