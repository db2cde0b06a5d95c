"""Recognition, by tensor names, of files that are not Stable Diffusion v1 checkpoints.

Each kind has a pattern; the first kind in the table of which the pattern matches a tensor's name counts. The names are
those that diffusers, kohya-ss/sd-scripts, LyCORIS, PEFT, ComfyUI, A1111 and the models' authors write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdrt.checkpoint.configs import V1_HINT
from sdrt.checkpoint.safetensors_header import TensorEntry

#: Prefixes of a UNet's names in files that hold it alone or with other networks.
INNER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
#: Name of the UNet's first layer, by layout; its number of input channels distinguishes variants.
FIRST_LAYERS = ("input_blocks.0.0.weight", "conv_in.weight")
#: Names of a cross-attention's key weights; their input width distinguishes text encoders.
CROSS_ATTENTIONS = re.compile(r"(^|\.)(input_blocks|down_blocks|middle_block|mid_block)\..*\.attn2\.to_k\.weight")
# No library writes longer names, nor more tensors in a file; both bound the time of matching.
_LONGEST_NAME = 250
MOST_TENSORS = 20_000

WITHOUT_HINT = "give the checkpoint without it, or with it merged in"
WHOLE_HINT = "give a whole checkpoint: text encoder, UNet and VAE in one file"
ADAPTER_HINT = "give the checkpoint that it is used with, whole"
LORA_HINT = (
    "give a whole checkpoint; merge the LoRA into one first, in diffusers: pipe.load_lora_weights(FILE); "
    "pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained(FOLDER)"
)
LYCORIS_HINT = "give a whole checkpoint; merge the LyCORIS into one first, by tools/merge.py of LyCORIS or in ComfyUI"
EMBEDDING_HINT = (
    "give a whole checkpoint; put the embedding into one first, in diffusers: "
    "pipe.load_textual_inversion(FILE); pipe.save_pretrained(FOLDER)"
)
UPSCALER_HINT = "give a Stable Diffusion v1 checkpoint; sdrt does not run upscalers"
VAE_HINT = "give a whole checkpoint; to change its VAE, save it as a diffusers folder and put this file into vae/"
PARTS_HINT = "give the pipeline's folder, as pipe.save_pretrained(FOLDER) writes it"


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its name, to complete "FILE is ...", and a hint.

    ``adapter`` is True if it is used with a checkpoint, so that a whole checkpoint may contain it too.
    """

    what: str
    hint: str
    adapter: bool = False


def _adapters() -> Iterable[tuple[str, str, str]]:
    """Yield kind, hint and pattern of files that are used with a checkpoint."""
    sdxl, other = "for Stable Diffusion XL", "for another model than Stable Diffusion v1"
    lora = r"([._](lora|lora_down|lora_up|lora_mid|lora_A|lora_B|lora_linear_layer)\.|_lora\d?\.(up|down)\.)"
    for what, pattern in {
        "PhotoMaker": r"^(id_encoder|lora_weights)\.",
        "PuLID": r"^pulid_(ca|encoder)\.",
        "an IP-Adapter": r"^(ip_adapter|image_proj|image_proj_model|ip_adapter_proj_model|adapter_modules)\."
        r"|\.to_[kv]_ip\.|^encoder_hid_proj\.image_projection_layers\.|\.ip_adapter_(double|single)_stream",
        "a Control-LoRA": r"^lora_controlnet$",
        "a ControlNet": r"^(control_model|controlnet|input_hint_block|zero_convs|middle_block_out|task_embedding)\."
        r"|^(difference|task_embedding)$|^(nested_model\.|module\.)?controlnet_(cond_embedding|down_blocks|mid_block"
        r"|blocks|single_blocks|x_embedder|add_embedding|mode_embedder)\."
        r"|^control_(add_embedding|all_x_embedder|layers)\."
        r"|(^|\.)(ctrl_to_base|base_to_ctrl|control_to_base|ctrl_resnet)",
        "a T2I-Adapter": r"^(adapter\.)?(body\.\d+\.)+(resnets\.\d+\.)?(block[12]|in_conv|skep)\."
        r"|^adapter\.(body|conv_in|conv)\.|^transformer_layes\.|^style_embedding$",
        "GLIGEN": r"(^|\.)position_net\.|\.fuser\.(attn|ff|linear|alpha)",
        "a hypernetwork": r"^\d+\.\d+\.linear\d?\.",
    }.items():
        yield what, ADAPTER_HINT, pattern
    for what, pattern in {
        "a LyCORIS (LoHa)": r"\.hada_[wt]\d",
        "a LyCORIS (LoKr)": r"\.lokr_[wt]\d",
        "a LyCORIS (OFT)": r"\.(oft|boft)_",
        "a LyCORIS (GLoRA)": r"\.(a1|a2|b1|b2|bm)\.weight$",
        "a LyCORIS (IA3)": r"\.on_input$|\.ia3_l",
        "a LyCORIS (norms)": r"\.[wb]_norm$",
        "a LyCORIS (full differences)": r"\.diff(_b)?$",
        "a LyCORIS": r"^lycoris_",
    }.items():
        yield what, LYCORIS_HINT, pattern
    yield f"a LoRA {sdxl}", LORA_HINT, rf"^(lora_te2_|text_encoder_2\..*{lora})"
    transformer = r"lora_unet_(double|single|joint)_blocks_|lora_transformer_|transformer\.|lora_te3_|lora_prior_"
    yield f"a LoRA {other}", LORA_HINT, rf"^({transformer}).*{lora}|(double|single)_blocks\..*{lora}"
    yield "a LoRA (DoRA)", LORA_HINT, r"\.(dora_scale|lora_magnitude_vector)"
    yield "a LoRA", LORA_HINT, rf"^lora_(unet|te\d?)_|^(unet|text_encoder):\d+:(up|down)$|^base_model\.model\.|{lora}"
    yield "a LoRA", LORA_HINT, r"\.lora_[A-Za-z]"
    yield f"an embedding (textual inversion) {sdxl}", EMBEDDING_HINT, r"^(clip_g|text_encoders_1)$"
    yield f"an embedding (textual inversion) {other}", EMBEDDING_HINT, r"^(t5xxl|clip_h|qwen\w*|gemma\w*|llama)$"
    single = r"emb_params|string_to_(param|token)(\..*)?|clip_l|text_encoders_0|<[^\n]+>"
    yield "an embedding (textual inversion)", EMBEDDING_HINT, rf"^({single})$"


def _models() -> Iterable[tuple[str, str]]:
    """Yield kind and pattern of checkpoints of other models, whole or in parts."""
    yield "AnimateDiff's motion modules", r"(^|\.)motion_modules\."
    yield "Stable Video Diffusion or another of its kind", r"\.(time_stack|time_mixer|time_mix_blocks)\b"
    yield "a text-to-video model", r"\.(temopral_conv|temp_convs|temp_attentions)\.|(^|\.)transformer_in\."
    yield "Playground v2.5", r"^edm_mean$"
    yield "Stable unCLIP", r"^noise_augmentor\.|^embedder\.model\."
    yield "Zero-1-to-3", r"^cc_projection\."
    yield "Stable Diffusion's x4 upscaler", r"^low_scale_model\."
    yield "Stable Diffusion's depth-to-image model", r"^depth_model\."
    yield "Kandinsky", r"(^|\.)(ln_model_n|clip_to_seq|add_embedding\.image_(proj|norm)|encoder_hid_proj\.text_proj)\."
    yield "DeepFloyd IF", r"(^|\.)(encoder_pooling|aug_proj|add_embedding\.pool)\."
    yield "Kolors", r"^(unet\.)?encoder_hid_proj\.weight$"
    yield "Stable Diffusion XL's refiner", r"^conditioner\.embedders\.0\.model\."
    yield "Stable Diffusion XL", r"^conditioner\.|^(unet\.)?add_embedding\.|(^|\.)label_emb\.0\.0\."
    yield "Stable Cascade", r"(^|\.)(clip_txt_mapper|clip_img_mapper|clip_mapper|channelwise)\.|^vquantizer\.|^effnet\."
    yield "Stable Diffusion 3", r"(^|\.)(joint_blocks|context_processor)\.|^text_encoders\.clip_g\."
    yield "Hunyuan Video", r"(^|\.)(individual_token_refiner|token_refiner)\."
    yield "HunyuanDiT", r"(^|\.)(mlp_t5|style_embedder)\."
    yield "Chroma", r"(^|\.)distilled_guidance_layer\."
    yield "HiDream", r"(^|\.)double_stream_blocks\."
    yield "Flux 2", r"(^|\.)(single_stream_modulation|double_stream_modulation_img)\."
    yield "AuraFlow", r"(^|\.)(double_layers|cond_seq_linear|joint_transformer_blocks)\."
    yield "Flux or a model like it", r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\."
    yield "LTX-Video", r"(^|\.)(patchify_proj|per_channel_statistics)\."
    yield "SANA", r"(^|\.)(conv_depth|depth_conv|attention_y_norm)\."
    yield "PixArt", r"(^|\.)(t_block\.1|cross_attn\.kv_linear)\.|(^|\.)y_embedder\.y_embedding$"
    yield "Wan", r"(^|\.)(head\.modulation$|vace_blocks\.|motion_encoder\.dec|condition_embedder\.time_proj\.)"
    yield "Mochi", r"(^|\.)(t5_yproj|attn\.qkv_x)\."
    yield "Cosmos", r"^net\.(x_embedder|blocks|pos_embedder|extra_pos_embedder)\b"
    yield "Lumina or Z-Image", r"(^|\.)(cap_embedder|noise_refiner)\."
    yield "Qwen-Image", r"(^|\.)(txt_norm\.weight$|txt_in\.text_norm\.|img_mlp\.)"
    yield "CogVideoX or CogView", r"(^|\.)patch_embed\.text_proj\."
    yield "a diffusion transformer", r"(^|\.)(context_embedder|x_embedder|t_embedder|adaln_single|add_[qkv]_proj)\."
    yield "an unCLIP prior", r"^(prd_embedding|clip_mean|clip_std)$|^(proj_to_clip_embeddings|prior)\."
    yield "a diffusion transformer", r"^(transformer\.)?transformer_(blocks|layers)\.\d+\."
    yield "a latent consistency model (LCM)", r"(^|\.)(time_embed|time_embedding)\.cond_proj\."
    yield "Stable Diffusion v2", r"^cond_stage_model\.model\."
    yield "AltDiffusion", r"^cond_stage_model\.(transformer\.)?roberta\."
    yield "the first latent diffusion model", r"^cond_stage_model\.transformer\.(attn_layers|token_emb)\."
    yield "a checkpoint with a VQ autoencoder", r"^(first_stage_model\.)?quantize\.embedding\."
    yield "a safety checker", r"(^|\.)(concept_embeds|special_care_embeds)"


def _upscalers() -> str:
    """Return the pattern of upscalers and restoration networks, alone in a file or below params."""
    names = (
        r"model\.\d+\.(weight|bias|sub\.)",  # ESRGAN
        r"(conv_first|conv_body|conv_up\d|conv_hr|conv_last|conv_after_body|conv_before_upsample)\.",
        r"(HRconv|trunk_conv|upconv\d)\.",
        r"(RRDB_trunk|upsample|upsampler|residual_layer|stylegan_decoder|generator\.blocks)\.",
        r"body\.\d+\.(rdb\d|weight|bias|conv)",  # Real-ESRGAN, whole and compact
        r"(layers|blocks|feats|dblocks|gblocks)\.\d+\.(residual_group|swin\d|weight|bias|dw|lk|token_mix|norm\.)",
        r"(.*\.)?(relative_position_bias_table|relative_position_index\w*|attn_mask)$",  # SwinIR, HAT, DAT
        r"(block_\d|up1|to_feat|to_img|uplut|tail\.0|head\.0)\.",
    )
    return rf"^(params(_ema)?\.|module\.)?({'|'.join(names)})"


def _parts() -> Iterable[tuple[str, str, str]]:
    """Yield kind, hint and pattern of single networks of a checkpoint, in all known layouts."""
    yield (
        "a TAESD autoencoder alone",
        WHOLE_HINT,
        r"^(taesd_)?((encoder|decoder)\.)?(layers\.)?\d+\.(conv\.\d+\.)?(weight|bias)$",
    )
    yield (
        "a video autoencoder alone",
        WHOLE_HINT,
        r"^(encoder|decoder)\.(middle\.\d|.*\.(time_conv|time_res_block|residual))\.",
    )
    autoencoder = r"(down|up|mid|conv_in|conv_out|norm_out|down_blocks|up_blocks|mid_block|conv_norm_out)\."
    quant = r"(post_)?quant_conv\."
    yield "a VAE alone", VAE_HINT, rf"^(vae\.|first_stage_model\.|model\.)?((encoder|decoder)\.{autoencoder}|{quant})"
    yield "a CLIP image encoder alone", WHOLE_HINT, r"^(vision_model\.|visual\.|visual_projection\.)"
    yield "a T5 text encoder alone", WHOLE_HINT, r"^(encoder\.)?block\.\d+\.layer\.|^shared\.weight$"
    text = r"(text_model\.|embeddings\.(token|position)_embedding|encoder\.layers\.\d+\.(self_attn|mlp|layer_norm))"
    clip = rf"^(cond_stage_model\.|text_encoder\.|clip_l\.|model\.)?(transformer\.)?{text}"
    yield "a text encoder alone", WHOLE_HINT, rf"{clip}|^(model\.)?transformer\.resblocks\.|^token_embedding\."
    yield "a language model", WHOLE_HINT, r"^(model\.)?(language_model\.)?layers\.\d+\.self_attn\.|^lm_head\."
    old = r"input_blocks|middle_block|output_blocks|time_embed"
    new = r"down_blocks|mid_block|up_blocks|time_embedding|conv_in|conv_out|conv_norm_out"
    yield "a class-conditional diffusion model", V1_HINT, r"(^|\.)(label_emb|class_embedding)\."
    yield "a UNet alone", WHOLE_HINT, rf"^(model\.diffusion_model\.|diffusion_model\.|unet\.|model\.)?({old}|{new})\."


def _compiled(rows: Iterable[tuple[str, str, str]], *, adapter: bool = False) -> list[tuple[FileKind, re.Pattern[str]]]:
    return [(FileKind(what, hint, adapter), re.compile(pattern, re.MULTILINE)) for what, hint, pattern in rows]


OTHERS = _compiled(_adapters(), adapter=True) + _compiled((what, V1_HINT, pattern) for what, pattern in _models())
UPSCALER = _compiled([("an upscaler or a network that restores pictures", UPSCALER_HINT, _upscalers())])
PARTS = _compiled(_parts())
#: Kind of a checkpoint by its UNet's input channels.
BY_CHANNELS = {
    5: "Stable Diffusion's depth-to-image model",
    7: "Stable Diffusion's x4 upscaler",
    8: "an image-editing (pix2pix) checkpoint",
    9: "an inpainting checkpoint",
}
#: Kind of a checkpoint by the width of its cross-attention's context.
BY_CONTEXT = {1024: "Stable Diffusion v2", 1280: "a UNet for another text encoder", 2048: "Stable Diffusion XL"}
#: Widths of the token embeddings of CLIP and T5.
EMBEDDING_WIDTHS = (768, 1024, 1280, 2048, 4096)
#: Most tensors in a file of embeddings, and most vectors in each.
MOST_EMBEDDINGS, MOST_VECTORS = 8, 256


def other_kind(tensors: Mapping[str, TensorEntry]) -> FileKind | None:
    """Return the kind of a file of another model or of an adapter; None if no tensor is of a known one."""
    text = _text(tensors)
    found = _first(OTHERS, text)
    if found is not None:
        return found
    for prefix in INNER_PREFIXES:
        for name in FIRST_LAYERS:
            entry = tensors.get(prefix + name)
            if entry is not None and len(entry.shape) == 4 and entry.shape[1] in BY_CHANNELS:
                return FileKind(BY_CHANNELS[entry.shape[1]], V1_HINT)
    for name, entry in tensors.items():
        if len(entry.shape) == 2 and entry.shape[1] in BY_CONTEXT and CROSS_ATTENTIONS.search(name[:_LONGEST_NAME]):
            return FileKind(BY_CONTEXT[entry.shape[1]], V1_HINT)
    return None


def partial_kind(tensors: Mapping[str, TensorEntry]) -> FileKind | None:
    """Return the kind of a file that holds only part of a checkpoint; None if it has no known layout."""
    text = _text(tensors)
    networks = [prefix for prefix in ("unet.", "vae.", "text_encoder.") if re.search(rf"^{prefix}", text, re.MULTILINE)]
    if len(networks) > 1:
        return FileKind("a diffusers pipeline's networks in one file", PARTS_HINT)
    found = _first(PARTS, text) or _first(UPSCALER, text)
    if found is None and 0 < len(tensors) <= MOST_EMBEDDINGS:
        shapes = [entry.shape for entry in tensors.values()]
        vectors = [shape[0] if len(shape) == 2 else 1 for shape in shapes if shape and shape[-1] in EMBEDDING_WIDTHS]
        if len(vectors) == len(shapes) and max(vectors) <= MOST_VECTORS and all(len(shape) <= 2 for shape in shapes):
            return FileKind("an embedding (textual inversion)", EMBEDDING_HINT)
    return found


def _text(tensors: Iterable[str]) -> str:
    return "\n".join(sorted(name for name in tensors if len(name) <= _LONGEST_NAME))


def _first(kinds: Iterable[tuple[FileKind, re.Pattern[str]]], text: str) -> FileKind | None:
    return next((kind for kind, pattern in kinds if pattern.search(text)), None)
