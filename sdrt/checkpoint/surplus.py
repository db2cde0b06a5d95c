"""Kinds of tensors that files of weights hold beside a network's own, recognised by name.

Pure functions of names, for files in the diffusers layout and for single files (names without the component's prefix,
or unchanged for tensors outside the components).

    unwrapped("_orig_mod.conv_in.weight")             "conv_in.weight": repairable
    surplus_kind("unet", "conv_in.lora_A.x.weight")   a kind with a hint: the file must be refused
    surplus_kind("unet", "model_ema.decay")           a kind without a hint: harmless, to be ignored
    surplus_kind("unet", "conv_in.weight")            None: no known kind
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Parts of names that torch.compile, DataParallel, FSDP and activation checkpointing add to wrapped modules.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^(?:module\.)+")
UNKNOWN_HINT = "the weights do not belong to this config; download or save the checkpoint again"


@dataclass(frozen=True)
class SurplusKind:
    """A kind of tensor that a network does not have.

    Attributes:
        what: Name of the kind, to complete "tensors of ...".
        hint: Hint of the error for a file with such tensors; None if they do not change what the network computes.
        usual: Whether most Stable Diffusion v1 files hold such tensors, so that no note is needed.
    """

    what: str
    hint: str | None = None
    usual: bool = False


LORA = SurplusKind(
    "a LoRA or another adapter that was left in",
    "save the pipeline again without it: pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained(FOLDER)",
)
IP_ADAPTER = SurplusKind(
    "an IP-Adapter that was left in",
    "save the pipeline again without it: pipe.unload_ip_adapter(); pipe.save_pretrained(FOLDER)",
)
CUSTOM_DIFFUSION = SurplusKind(
    "Custom Diffusion's attention, which Stable Diffusion v1 does not have", "give the checkpoint without it"
)
QUANTISED = SurplusKind(
    "a quantised copy of the weights (scales and tables)", "give the checkpoint in fp32, fp16 or bf16, not quantised"
)
PARAMETRIZED = SurplusKind(
    "weights that are split by a parametrization or by pruning",
    "save it again after torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove",
)
GUIDANCE_EMBEDDING = SurplusKind(
    "a latent consistency model, which takes the guidance scale as an input", "give a Stable Diffusion v1 checkpoint"
)
MOTION = SurplusKind("AnimateDiff's motion modules", "give the checkpoint without them")

POSITION_IDS = SurplusKind("position ids, which are computed again", usual=True)
PROJECTION = SurplusKind("CLIP's projections", usual=True)
VISION = SurplusKind("CLIP's vision model")
SKIPPED_LAYERS = SurplusKind("layers that num_hidden_layers leaves out")
EMA = SurplusKind("an EMA (averaged weights) of the network")
TRAINING = SurplusKind("training state (optimizer, counters, losses)")
SCHEDULE = SurplusKind("the noise schedule, which the scheduler's config defines")

# Pattern of names in any component by kind; the first match counts. Adapters come first.
_ANYWHERE: dict[SurplusKind, str] = {
    IP_ADAPTER: r".*\.to_[kv]_ip\..*|encoder_hid_proj\..*|(image_proj|ip_adapter)\..*",
    CUSTOM_DIFFUSION: r".*_custom_diffusion\..*",
    LORA: r".*(\.|^)(lora_[A-Za-z]|lora\.(down|up)|base_layer\.|hada_[wt]\d|lokr_[wt]\d|oft_|boft_|ia3_|vera_).*"
    r"|.*_lora\.(down|up)\..*|lora_(unet|te).*|base_model\.model\..*|.*\.dora_scale",
    MOTION: r".*(\.|^)motion_modules\..*",
    GUIDANCE_EMBEDDING: r"time_embedding\.cond_proj\..*",
    QUANTISED: r".*\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|SCB|weight_format|qweight|qzeros"
    r"|scales|g_idx|_data|_scale|_scale_inv|_zero_?point|scale_weight|scale_input|weight_scale(_inv)?|weight_scale_2"
    r"|input_scale|output_scale|zero_point)|scaled_fp8|.*\._packed_params.*",
    PARAMETRIZED: r".*\.parametrizations\..*|.*\.(weight|bias)_(orig|mask|g|v|u)",
    POSITION_IDS: r"(.*\.)?position_ids",
    EMA: r"(model_ema|ema_model|ema|shadow_params)\..*",
    TRAINING: r"(.*\.)?num_batches_tracked|(optimizer|optimizer_states?|lr_schedulers?|(grad_)?scaler|callbacks)\..*"
    r"|(model_)?(ema_)?(global_step|step|steps|optimizer_step|optimization_step|epoch|iteration|decay|num_updates)",
    SCHEDULE: r"betas|alphas_cumprod(_prev)?|(sqrt_|log_)(one_minus_|recip_|recipm1_)?alphas_cumprod|logvar"
    r"|posterior_\w+|lvlb_weights|denoiser\.(log_)?sigmas",
}
# The same for names that are surplus in one component only.
_OF_COMPONENT: dict[str, dict[SurplusKind, str]] = {
    "text_encoder": {
        VISION: r"vision_model\..*|visual_projection\..*",
        PROJECTION: r"text_projection\.weight|logit_scale",
    },
    "unet": {},
    "": {},
    "vae": {TRAINING: r"(loss|discriminator)\..*"},
}
_ALL = {
    component: [(kind, re.compile(pattern)) for kind, pattern in (*_ANYWHERE.items(), *own.items())]
    for component, own in _OF_COMPONENT.items()
}
# No library writes longer names; matching a pattern takes time quadratic in the length.
_LONGEST_NAME = 500
_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\..+")


def unwrapped(name: str) -> str:
    """Return a tensor's name without the parts that wrappers add, such as ``_orig_mod.`` and ``module.``."""
    return WRAPPERS.sub("", WRAPPERS.sub("", name))


def surplus_kind(component: str, name: str, layers: int | None = None) -> SurplusKind | None:
    """Return the kind of a tensor that is not the network's own, or None for a name of no known kind.

    Args:
        component: "text_encoder", "unet" or "vae"; "" for other tensors of a single file.
        name: The tensor's name, unwrapped; in a single file without the component's prefix.
        layers: The text encoder's num_hidden_layers; None if unknown.
    """
    if len(name) > _LONGEST_NAME:
        return None
    for kind, pattern in _ALL[component]:
        if pattern.fullmatch(name):
            return kind
    layer = _LAYER.fullmatch(name)
    if component == "text_encoder" and layers is not None and layer is not None and int(layer[1]) >= layers:
        return SKIPPED_LAYERS
    return None
