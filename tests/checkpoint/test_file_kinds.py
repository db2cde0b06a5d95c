"""Kinds of files: real layouts are recognised from names and shapes alone, and no v1 checkpoint is taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, MotionAdapter, T2IAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.file_kinds import other_kind, partial_kind
from sdrt.checkpoint.safetensors_header import TensorEntry
from sdrt.errors import CheckpointError
from tests.checkpoint.sparse_file import v1_tensors, write_sparse

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
XL = "for Stable Diffusion XL"
OTHER = "for another model than Stable Diffusion v1"
UNET, LDM = "model.diffusion_model", "input_blocks.1.1.transformer_blocks.0"
# Names (with a shape where it counts) of one real layout -> what it is.
LAYOUTS: dict[str, Sequence[str]] = {
    # LoRA: kohya in both spellings, text encoder, LoCon; old and new diffusers; PEFT; ComfyUI; cloneofsimo.
    "a LoRA": [
        f"{FLAT}.lora_down.weight",
        f"{FLAT}.alpha",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
        f"{FLAT}.lora_mid.weight",
        f"unet.{BLOCK}.processor.to_q_lora.down.weight",
        f"{BLOCK}.processor.to_q_lora.up.weight",
        f"unet.{BLOCK}.to_q.lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        f"unet.{BLOCK}.to_q.lora_A.weight",
        f"unet.{BLOCK}.to_q.lora_B.default.weight",
        f"base_model.model.{BLOCK}.to_q.lora_A.weight",
        "text_model.embeddings.token_embedding.lora_embedding_A",
        "diffusion_model.input_blocks.1.1.proj_in.lora_up.weight",
        "unet:0:up",
        "text_encoder:3:down",
    ],
    "a LoRA (DoRA)": [f"{FLAT}.dora_scale", f"unet.{BLOCK}.to_q.lora_magnitude_vector"],
    f"a LoRA {XL}": [
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ],
    f"a LoRA {OTHER}": [
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "double_blocks.0.processor.qkv_lora1.down.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight",
    ],
    "a LyCORIS (LoHa)": [f"{FLAT}.hada_w1_a", f"{FLAT}.hada_t1"],
    "a LyCORIS (LoKr)": [f"{FLAT}.lokr_w1", f"{FLAT}.lokr_w2_b", "lycoris_mid_block_resnets_0_conv1.lokr_t2"],
    "a LyCORIS (OFT)": [f"{FLAT}.oft_blocks", f"{FLAT}.oft_diag", f"{BLOCK}.to_q.oft_R.weight", f"{FLAT}.boft_R"],
    "a LyCORIS (GLoRA)": [f"{FLAT}.a1.weight", f"{FLAT}.b2.weight"],
    "a LyCORIS (IA3)": [f"{FLAT}.on_input"],
    "a LyCORIS (norms)": ["lora_unet_down_blocks_0_resnets_0_norm1.w_norm"],
    "a LyCORIS (full differences)": [f"{FLAT}.diff", f"{FLAT}.diff_b"],
    "a LyCORIS": ["lycoris_mid_block_resnets_0_conv1.alpha"],
    "an embedding (textual inversion)": [
        "emb_params",
        "string_to_param",
        "string_to_param.*",
        "clip_l",
        "<my-token>",
        "text_encoders_0",
        "my token: 768",
        "*: 4 768",
    ],
    f"an embedding (textual inversion) {XL}": ["clip_g"],
    f"an embedding (textual inversion) {OTHER}": ["t5xxl"],
    "a hypernetwork": ["768.0.linear.0.weight"],
    "PhotoMaker": [
        "id_encoder.vision_model.embeddings.class_embedding",
        "lora_weights.down_blocks.0.to_q_lora.up.weight",
    ],
    "PuLID": ["pulid_ca.0.norm1.weight"],
    "an IP-Adapter": [
        "ip_adapter.1.to_k_ip.weight",
        "image_proj.latents",
        "image_proj.perceiver_resampler.proj_in.weight",
        "ip_adapter.0.to_q_lora.down.weight",
        "1.to_k_ip.weight",
        f"{BLOCK.replace('attn1', 'attn2')}.processor.to_v_ip.0.weight",
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight",
    ],
    "a Control-LoRA": ["lora_controlnet"],
    "a ControlNet": [
        "control_model.zero_convs.0.0.weight",
        "control_model.input_blocks.0.0.weight",
        "zero_convs.0.0.weight",
        "input_hint_block.0.weight",
        "middle_block_out.0.bias",
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_down_blocks.0.weight",
        "controlnet_mid_block.bias",
        "control_add_embedding.linear_1.weight",
        "task_embedding",
        "difference",
        "controlnet_blocks.0.weight",
        "controlnet_x_embedder.weight",
        "control_all_x_embedder.2-1.weight",
    ],
    "a T2I-Adapter": [
        "body.0.block1.weight",
        "body.2.in_conv.weight",
        "body.0.body.0.block1.weight",
        "adapter.body.0.resnets.0.block1.weight",
        "adapter.conv_in.weight",
        "transformer_layes.0.attn.in_proj_weight",
    ],
    "GLIGEN": ["position_net.null_positive_feature.weight", f"{UNET}.{LDM}.fuser.alpha_attn"],
    "AnimateDiff's motion modules": [
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        "module.mid_block.motion_modules.0.temporal_transformer.norm.bias",
    ],
    "Stable Video Diffusion or another of its kind": [f"{UNET}.input_blocks.1.1.time_stack.0.norm1.weight"],
    "a text-to-video model": [f"{UNET}.input_blocks.1.0.temopral_conv.conv1.0.weight", "transformer_in.norm.weight"],
    "Stable Diffusion XL": [
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        f"{UNET}.label_emb.0.0.weight",
        "add_embedding.linear_1.weight",
        f"{UNET}.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight: 640 2048",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight: 640 2048",
    ],
    "Stable Diffusion XL's refiner": ["conditioner.embedders.0.model.text_projection"],
    "Playground v2.5": ["edm_mean"],
    "Stable Diffusion 3": [
        f"{UNET}.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "joint_blocks.37.x_block.mlp.fc1.weight",
        "text_encoders.clip_g.transformer.text_model.final_layer_norm.weight",
    ],
    "Flux or a model like it": [
        f"{UNET}.double_blocks.0.img_attn.norm.key_norm.scale",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_transformer_blocks.0.attn.to_q.weight",
    ],
    "Flux 2": ["single_stream_modulation.lin.weight"],
    "Chroma": ["distilled_guidance_layer.in_proj.bias"],
    "Stable Cascade": ["down_blocks.1.0.channelwise.0.weight", "clip_txt_mapper.weight", "vquantizer.codebook.weight"],
    "PixArt": ["t_block.1.weight", "y_embedder.y_embedding"],
    "SANA": ["blocks.0.mlp.depth_conv.conv.weight"],
    "HunyuanDiT": ["mlp_t5.0.weight"],
    "Hunyuan Video": ["txt_in.individual_token_refiner.blocks.0.norm1.weight"],
    "AuraFlow": ["double_layers.0.attn.w2q.weight"],
    "HiDream": ["double_stream_blocks.0.block.adaLN_modulation.1.bias"],
    "LTX-Video": [f"{UNET}.patchify_proj.weight"],
    "Wan": ["head.modulation", "vace_blocks.0.after_proj.bias"],
    "Mochi": ["blocks.0.attn.qkv_x.weight"],
    "Cosmos": ["net.x_embedder.proj.1.weight"],
    "Lumina or Z-Image": ["cap_embedder.0.weight"],
    "Qwen-Image": ["txt_in.text_norm.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"],
    "CogVideoX or CogView": ["patch_embed.text_proj.weight"],
    "Kolors": ["encoder_hid_proj.weight"],
    "Kandinsky": ["add_embedding.image_norm.weight"],
    "DeepFloyd IF": ["add_embedding.pool.positional_embedding"],
    "a diffusion transformer": ["transformer_blocks.0.norm1.linear.weight", "context_embedder.weight"],
    "an unCLIP prior": ["prd_embedding"],
    "Stable Diffusion's x4 upscaler": [
        "low_scale_model.betas",
        f"{UNET}.input_blocks.0.0.weight: 256 7 3 3",
        "conv_in.weight: 256 7 3 3",
    ],
    "Stable Diffusion's depth-to-image model": [
        "depth_model.model.pretrained.model.cls_token",
        f"{UNET}.input_blocks.0.0.weight: 320 5 3 3",
    ],
    "Stable unCLIP": ["noise_augmentor.data_mean"],
    "Zero-1-to-3": ["cc_projection.weight"],
    "a latent consistency model (LCM)": [f"{UNET}.time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"],
    "Stable Diffusion v2": [
        "cond_stage_model.model.token_embedding.weight",
        f"{UNET}.{LDM}.attn2.to_k.weight: 320 1024",
        f"diffusion_model.{LDM}.attn2.to_k.weight: 320 1024",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight: 320 1024",
    ],
    "an inpainting checkpoint": [
        f"{UNET}.input_blocks.0.0.weight: 320 9 3 3",
        "diffusion_model.input_blocks.0.0.weight: 320 9 3 3",
        "conv_in.weight: 320 9 3 3",
        "unet.conv_in.weight: 320 9 3 3",
    ],
    "an image-editing (pix2pix) checkpoint": [
        f"{UNET}.input_blocks.0.0.weight: 320 8 3 3",
        "conv_in.weight: 320 8 3 3",
    ],
    "AltDiffusion": ["cond_stage_model.roberta.embeddings.LayerNorm.weight"],
    "the first latent diffusion model": ["cond_stage_model.transformer.attn_layers.layers.0.0.0.weight"],
    "a checkpoint with a VQ autoencoder": ["first_stage_model.quantize.embedding.weight", "quantize.embedding.weight"],
    "a safety checker": ["concept_embeds", "special_care_embeds|vision_model.vision_model.post_layernorm.weight"],
    "a VAE alone": [
        "decoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down_blocks.0.resnets.0.norm1.weight",
        "first_stage_model.decoder.up.0.block.0.norm1.weight",
        "vae.decoder.mid_block.attentions.0.to_q.weight",
        "post_quant_conv.weight",
    ],
    "a TAESD autoencoder alone": ["1.weight", "3.conv.0.weight", "decoder.layers.1.conv.0.weight"],
    "a video autoencoder alone": ["decoder.middle.0.residual.0.gamma"],
    "a UNet alone": [
        "down_blocks.0.resnets.0.conv1.weight",
        "diffusion_model.input_blocks.0.0.bias",
        "input_blocks.0.0.weight: 320 4 3 3",
        f"{UNET}.time_embed.0.weight",
        "unet.time_embedding.linear_1.weight",
    ],
    "a class-conditional diffusion model": ["class_embedding.weight"],
    "a text encoder alone": [
        "text_model.encoder.layers.0.mlp.fc1.weight",
        "encoder.layers.0.self_attn.q_proj.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "transformer.text_model.embeddings.token_embedding.weight",
        "transformer.resblocks.0.attn.in_proj_weight",
    ],
    "a CLIP image encoder alone": ["vision_model.post_layernorm.weight", "visual.proj.weight"],
    "a T5 text encoder alone": ["encoder.block.0.layer.0.SelfAttention.k.weight"],
    "a language model": ["model.layers.0.self_attn.q_proj.weight"],
    "a diffusers pipeline's networks in one file": ["unet.conv_in.bias|vae.decoder.conv_in.bias"],
    "an upscaler or a network that restores pictures": [
        "model.0.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
        "conv_first.weight",
        "body.0.rdb1.conv1.weight",
        "body.0.weight",
        "params_ema.conv_first.weight",
        "params.body.0.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
        "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
        "relative_position_index_SA",
        "stylegan_decoder.constant_input.weight",
        "feats.0.weight",
    ],
}


def tensors(text: str) -> dict[str, TensorEntry]:
    """Parse tensor names joined by "|", each with an optional shape after a colon."""
    found = {}
    for part in text.split("|"):
        name, _, shape = part.partition(": ")
        found[name] = TensorEntry("F32", tuple(map(int, shape.split())) or (2, 3), 0, 0)
    return found


def kind_of(held: dict[str, TensorEntry]) -> str | None:
    """Return the kind that a file of the tensors is recognised as."""
    kind = other_kind(held) or partial_kind(held)
    return kind.what if kind else None


@pytest.mark.parametrize("what", LAYOUTS)
def test_each_layout_is_told(what: str) -> None:
    assert {text: kind_of(tensors(text)) for text in LAYOUTS[what]} == dict.fromkeys(LAYOUTS[what], what)


def test_a_checkpoint_of_v1_is_none_of_them() -> None:
    held = {name: TensorEntry(dtype, tuple(shape), 0, 0) for name, (dtype, shape) in v1_tensors().items()}
    leftovers = "model_ema.decay|betas|first_stage_model.loss.discriminator.main.0.weight|cond_stage_model.logit_scale"
    assert other_kind(held | tensors(leftovers)) is None


@pytest.mark.parametrize("text", ["weights", "layer1.0.conv1.weight", "a: 768 768", "b: 0", "c: 4 77 768"])
def test_no_known_layout(text: str) -> None:
    assert kind_of(tensors(text)) is None


def test_networks_of_the_libraries_are_told() -> None:
    with torch.device("meta"):
        networks: dict[str, torch.nn.Module] = {
            "a ControlNet": ControlNetModel(),
            "a T2I-Adapter": T2IAdapter(),
            "a TAESD autoencoder alone": AutoencoderTiny(),
            "a VAE alone": AutoencoderKL(),
            "a UNet alone": UNet2DConditionModel(cross_attention_dim=768),
            "AnimateDiff's motion modules": MotionAdapter(),
            "a text encoder alone": CLIPTextModel(CLIPTextConfig()),
            "a CLIP image encoder alone": CLIPVisionModelWithProjection(CLIPVisionConfig()),
        }
    for what, network in networks.items():
        held = {name: TensorEntry("F32", tuple(part.shape), 0, 0) for name, part in network.state_dict().items()}
        assert kind_of(held) == what


@pytest.mark.parametrize("what", [what for what in LAYOUTS if "LoRA" in what or "LyCORIS" in what])
def test_an_adapter_beside_a_whole_checkpoint_is_told_as_such(tmp_path: Path, what: str) -> None:
    path = write_sparse(tmp_path / "MERGED.SAFETENSORS", {**v1_tensors(), LAYOUTS[what][0]: ("F32", (2, 2))})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path), cache=tmp_path / "cache")
    assert caught.value.message == f"{path} holds {what} beside the checkpoint"
    assert not (tmp_path / "cache").exists()


def test_names_longer_than_any_librarys_are_passed_over() -> None:
    assert kind_of(tensors(f"{'body.0.' * 100}lora_down.weight")) is None
