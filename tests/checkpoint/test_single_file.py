"""A checkpoint in one .safetensors file: round trips, refusals, the cache."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from sdrt.checkpoint import open_checkpoint, single_file
from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.checkpoint.safetensors_header import read_header
from sdrt.checkpoint.single_file import open_single_file, plan
from sdrt.checkpoint.weights import STEMS, find_weights
from sdrt.errors import CheckpointError, ResourceError, SdrtError, TimeLimitError
from tests.checkpoint.original_layout import as_single_file
from tests.checkpoint.sparse_file import Tensors, v1_tensors, write_sparse
from tests.models import odd_checkpoints, tiny_checkpoint

LOADERS: dict[str, Callable[..., torch.nn.Module]] = {
    "text_encoder": load_text_encoder,
    "unet": load_unet,
    "vae": load_vae,
}
JUNK = {
    "alphas_cumprod": torch.ones(10),
    "model_ema.decay": torch.tensor(0.5),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
    "first_stage_model.loss.logvar": torch.ones(1),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
}


def memory(cache: Path) -> DigestMemory:
    """Return a memory of digests in the cache."""
    return DigestMemory(cache / "digests.json")


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """Write the tiny checkpoint as one file, with typical leftovers of training runs."""
    return as_single_file(tiny, tmp_path / "fine-tune.safetensors", JUNK)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("tiny", torch.float16), ("heads-by-level", torch.float32), ("wide-two-layers", torch.float32)],
)
def test_round_trip_is_equal_tensor_by_tensor(tmp_path: Path, cache: Path, name: str, dtype: torch.dtype) -> None:
    source = tiny_checkpoint(tmp_path / "source", seed=3, **odd_checkpoints().get(name, {}))
    file = as_single_file(source, tmp_path / "one.safetensors", JUNK)
    expected = {
        component: {key: value.to(dtype).float() for key, value in load_file(find_weights(source, component)).items()}
        for component in STEMS
    }
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    checkpoint = open_single_file(file, cache, memory(cache), configs=source)
    for component, load in LOADERS.items():
        state = load(checkpoint).state_dict()
        plain = {key.removeprefix("text_model."): value for key, value in expected[component].items()}
        assert {key.removeprefix("text_model.") for key in state} == plain.keys()
        for key, value in state.items():
            assert torch.equal(value, plain[key.removeprefix("text_model.")]), key
    assert checkpoint.vae["scaling_factor"] == json.loads((source / "vae/config.json").read_bytes())["scaling_factor"]


def test_converted_once_and_again_only_when_the_file_changes(file: Path, tiny: Path, cache: Path) -> None:
    first = open_single_file(file, cache, memory(cache), configs=tiny).path
    stamp = (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert open_single_file(file, cache, memory(cache), configs=tiny).path == first
    assert (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == stamp
    as_single_file(tiny, file, {**JUNK, "alphas_cumprod": torch.zeros(10)})
    assert open_single_file(file, cache, memory(cache), configs=tiny).path != first


def test_v_prediction_mark_is_honoured(tiny: Path, tmp_path: Path, cache: Path) -> None:
    file = as_single_file(tiny, tmp_path / "v.safetensors", {"v_pred": torch.zeros(0)})
    assert open_single_file(file, cache, memory(cache), configs=tiny).scheduler["prediction_type"] == "v_prediction"


def test_text_encoder_without_its_inner_prefix(file: Path, tiny: Path, cache: Path) -> None:
    tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(file).items()}
    save_file(tensors, file)
    checkpoint = open_single_file(file, cache, memory(cache), configs=tiny)
    expected = load_file(find_weights(tiny, "text_encoder"))["text_model.final_layer_norm.weight"]
    assert torch.equal(load_text_encoder(checkpoint).get_parameter("final_layer_norm.weight"), expected)


@pytest.mark.parametrize("vae_prefix", ["first_stage_model.", "vae."])
def test_equal_to_diffusers_from_single_file(tiny: Path, tmp_path: Path, cache: Path, vae_prefix: str) -> None:
    file = as_single_file(tiny, tmp_path / "mixed.safetensors", JUNK)
    tensors = {name.replace("first_stage_model.", vae_prefix): tensor for name, tensor in load_file(file).items()}
    dtypes = itertools.cycle([torch.float16, torch.bfloat16, torch.float32, torch.float64])
    save_file({name: tensor.to(next(dtypes)) for name, tensor in tensors.items()}, file)
    checkpoint = open_single_file(file, cache, memory(cache), configs=tiny)
    reference: dict[str, torch.nn.Module] = {
        "unet": UNet2DConditionModel.from_single_file(str(file), config=str(tiny), subfolder="unet"),
        "vae": AutoencoderKL.from_single_file(str(file), config=str(tiny), subfolder="vae"),
        "text_encoder": create_diffusers_clip_model_from_ldm(
            CLIPTextModel, load_file(file), subfolder="text_encoder", config=str(tiny), local_files_only=True
        ),
    }
    for component, load in LOADERS.items():
        ours, theirs = load(checkpoint).state_dict(), reference[component].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name].float()) for name in ours)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module."])
def test_wrapped_names_are_unwrapped(tiny: Path, tmp_path: Path, cache: Path, wrapper: str) -> None:
    file = as_single_file(tiny, tmp_path / "one.safetensors")
    plain = open_single_file(file, cache, memory(cache), configs=tiny).path
    save_file({wrapper + name: tensor for name, tensor in load_file(file).items()}, file)
    wrapped = open_single_file(file, cache, memory(cache), configs=tiny).path
    assert wrapped != plain
    for component in STEMS:
        assert find_weights(wrapped, component).read_bytes() == find_weights(plain, component).read_bytes()


def refusal(path: Path, cache: Path) -> SdrtError:
    """Return the error of a file that is refused by name; assert that nothing was written."""
    with pytest.raises(SdrtError) as caught:
        open_checkpoint(str(path), cache=cache)
    assert not cache.exists()
    assert str(path) in caught.value.message
    assert str(cache) not in caught.value.message + caught.value.hint
    return caught.value


UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
LAYER = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
V1 = "expected Stable Diffusion v1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conditioner.embedders.1.model.x": (1,)}, f"is Stable Diffusion XL; {V1}"),
        ({"cond_stage_model.model.token_embedding.weight": (1,)}, f"is Stable Diffusion v2; {V1}"),
        ({"joint_blocks.0.x": (1,)}, f"is Stable Diffusion 3; {V1}"),
        ({"double_blocks.0.x": (1,)}, f"is Flux or a model like it; {V1}"),
        ({"lora_unet_down_blocks.lora_up.weight": (1,)}, "holds a LoRA beside the checkpoint"),
        ({LAYER.replace(".weight", ".lora_A.weight"): (4, 320)}, "holds a LoRA beside the checkpoint"),
        ({"control_model.x": (1,)}, "holds a ControlNet beside the checkpoint"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, f"is an inpainting checkpoint; {V1}"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, f"is an image-editing (pix2pix) checkpoint; {V1}"),
        ({f"{UNET}time_embed.cond_proj.weight": (320, 256)}, f"is a latent consistency model (LCM); {V1}"),
        ({"ztsnr": (0,)}, "requires a zero-terminal-SNR noise schedule (ztsnr)"),
        ({"edm_vpred.sigma_max": (1,)}, "requires EDM's noise levels (edm_vpred.sigma_max)"),
        ({f"{LAYER}.absmax": (1,)}, "has tensors of a quantised copy of the weights (scales and tables)"),
        ({"scaled_fp8": (2,)}, "has tensors of a quantised copy"),
        (
            {"cond_stage_model.": None},
            "has no text_encoder: no tensor's name starts with cond_stage_model.transformer.",
        ),
        ({UNET: None}, "has no unet: no tensor's name starts with model.diffusion_model."),
        ({"first_stage_model.": None}, "has no vae: no tensor's name starts with first_stage_model. or vae."),
        ({UNET: None, "first_stage_model.": None}, f"is a text encoder alone; {V1}"),
        ({UNET: None, "cond_stage_model.": None}, f"is a VAE alone; {V1}"),
        ({"cond_stage_model.": None, "first_stage_model.": None}, f"is a UNet alone; {V1}"),
        ({"": None}, "holds no tensors"),
        ({str(number): (0,) for number in range(20_001)}, "tensors; a checkpoint has at most 20,000"),
        ({"": None, "resnet.layer.0.weight": (3,)}, "has no known layout"),
        ({f"{UNET}extra.weight": (3,)}, "Stable Diffusion v1's unet has no tensor model.diffusion_model.extra.weight"),
        ({f"{UNET}extra.{part}": (3,) for part in "ab"}, "no tensor model.diffusion_model.extra.a and 1 more"),
        ({f"{TEXT}encoder.layers.12.layer_norm1.bias": (768,)}, f"text_encoder has no tensor {TEXT}encoder.layers.12"),
        (
            {f"{UNET}out.2.bias": None},
            "lacks 1 of the unet's 686 tensors; the first is model.diffusion_model.out.2.bias",
        ),
        ({f"{TEXT}encoder.layers.11.": None}, "lacks 16 of the text_encoder's 196 tensors"),
        ({f"{TEXT}embeddings.token_embedding.weight": (49409, 768)}, "has shape [49409, 768]; Stable Diffusion v1 has"),
        ({LAYER: (320, 320, 1, 1)}, f"{LAYER} has shape [320, 320, 1, 1]; Stable Diffusion v1 has [320, 320]"),
        ({"cond_stage_model.transformer.final_layer_norm.weight": (768,)}, "are the same tensor under two names"),
        ({LAYER: ("F8_E8M0", (320, 320))}, f"{LAYER} is F8_E8M0; expected F32, F16, BF16, F64"),
        ({LAYER: ("I8", (320, 320))}, f"{LAYER} is I8; expected"),
    ],
)
def test_the_header_alone_refuses(tmp_path: Path, cache: Path, change: dict[str, Any], reason: str) -> None:
    tensors = v1_tensors()
    for name, entry in change.items():
        if entry is None:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(name)}
        else:
            tensors[name] = entry if isinstance(entry[0] if entry else 0, str) else ("F32", entry)
    error = refusal(write_sparse(tmp_path / "My Model v2.SAFETENSORS", tensors), cache)
    assert error.exit_code == 3
    assert reason in error.message


HARMLESS: Tensors = {
    f"{TEXT}embeddings.position_ids": ("I64", (1, 77)),
    "cond_stage_model.transformer.embeddings.position_ids": ("F16", (1, 77)),
    "cond_stage_model.transformer.text_projection.weight": ("F32", (768, 768)),
    "cond_stage_model.transformer.vision_model.post_layernorm.weight": ("F32", (1024,)),
    "cond_stage_model.logit_scale": ("F32", ()),
    "model_ema.decay": ("F32", ()),
    "model_ema.num_updates": ("I32", ()),
    "model_ema.diffusion_modelinput_blocks00weight": ("F32", (320, 4, 3, 3)),
    "first_stage_model.loss.discriminator.main.0.weight": ("F32", (64, 3, 4, 4)),
    "betas": ("F64", (1000,)),
    "alphas_cumprod": ("F16", (1000,)),
    "sqrt_one_minus_alphas_cumprod": ("F32", (1000,)),
    "global_step": ("I64", ()),
    "embedding_manager.string_to_param_dict.x": ("F32", (1, 768)),
    "first_stage_model.quant_conv.weight": ("F64", (8, 8, 1, 1)),
    "first_stage_model.encoder.mid.attn_1.q.weight": ("BF16", (512, 512)),
}


def test_the_header_alone_accepts_what_is_harmless(tmp_path: Path) -> None:
    plain = write_sparse(tmp_path / "plain.safetensors", v1_tensors("F32"))
    with_extra = write_sparse(tmp_path / "extra.safetensors", v1_tensors() | HARMLESS)
    planned = plan(with_extra, read_header(with_extra))
    assert planned.tensors == plan(plain, read_header(plain)).tensors
    assert planned.notes == (
        f"{with_extra}: ignored 1 tensor (cond_stage_model.transformer.vision_model.post_layernorm.weight) of "
        f"CLIP's vision model",
        f"{with_extra}: ignored 1 tensor (first_stage_model.loss.discriminator.main.0.weight) of training state "
        f"(optimizer, counters, losses)",
        f"{with_extra}: narrowed 1 tensor (first_stage_model.quant_conv.weight) from F64 to F32",
    )


def test_other_widths_than_v1s_are_refused_since_a_single_file_has_no_configs(file: Path, cache: Path) -> None:
    error = refusal(file, cache)
    assert re.search(r"input_blocks.0.0.weight has shape \[32, 4, 3, 3\]; .* \[320, 4, 3, 3\]", error.message)
    assert "as a folder in the diffusers layout" in error.hint


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float8_e4m3fn, math.nan),
        (torch.float8_e5m2, -math.inf),
        (torch.float16, math.nan),
        (torch.bfloat16, -math.inf),
        (torch.float32, math.nan),
        (torch.float64, math.inf),
        (torch.float64, 1e300),
    ],
)
def test_weights_that_are_no_numbers_leave_nothing_behind(
    file: Path, tiny: Path, cache: Path, dtype: torch.dtype, value: float
) -> None:
    tensors, name = load_file(file), "first_stage_model.decoder.conv_out.bias"
    tensors[name] = tensors[name].to(dtype)
    tensors[name][1] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        open_single_file(file, cache, memory(cache), configs=tiny)
    assert caught.value.message == f"{file}: {name} holds NaN or Inf"
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_lock_that_never_frees(file: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_file, "LOCK_TIMEOUT_S", 0.05)
    folder = cache / "single-file" / memory(cache).sha256(file)
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_suffix(".lock")), pytest.raises(TimeLimitError, match="has held"):
        open_single_file(file, cache, memory(cache), configs=tiny)


def test_cache_that_is_a_file(file: Path, tiny: Path, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file, not a folder"):
        open_single_file(file, cache, memory(cache), configs=tiny)


def test_configs_that_ship_are_whole() -> None:
    for name in ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in STEMS)):
        assert isinstance(json.loads((SD_V1 / name).read_bytes()), dict)
