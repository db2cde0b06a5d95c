"""Fault-matrix rows 7 and 8: incomplete and other models' checkpoints are refused before any weight is read."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdrt.checkpoint import Checkpoint, open_checkpoint
from sdrt.errors import CheckpointError
from tests.checkpoint.changes import Edit


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """Copy the checkpoint with links for weights, which no test here changes."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in tiny.rglob("*.safetensors"):
        (folder / path.relative_to(tiny)).symlink_to(path)
    return folder


def refused(folder: Path, cache: Path, reason: str) -> None:
    """Assert that it is refused for the reason, in one line, even if no weight can be read."""
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match=re.escape(reason)) as caught:
        open_checkpoint(str(folder), cache=cache)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.hint


def test_negative_control_without_weights_it_is_the_weights_that_are_missing(copy: Path, cache: Path) -> None:
    refused(copy, cache, "model.safetensors is missing")


def test_row_7_model_index_missing(copy: Path, cache: Path) -> None:
    (copy / "model_index.json").unlink()
    refused(copy, cache, "model_index.json is missing")


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        None,
        7,
        ["StableDiffusionPipeline"],
    ],
)
def test_row_7_another_pipeline_is_refused_with_found_and_expected(
    copy: Path, cache: Path, edit: Edit, name: Any
) -> None:
    edit("model_index.json", {"_class_name": name})
    refused(copy, cache, f"_class_name is {name!r}; expected StableDiffusionPipeline")


def test_a_scheduler_without_betas_is_refused_by_its_class(copy: Path, cache: Path, edit: Edit) -> None:
    for name in ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"):
        edit("scheduler/scheduler_config.json", {"_class_name": name})
        refused(copy, cache, f"_class_name is {name!r}: a scheduler without betas")


def test_row_7_parts_that_are_not_used_are_ignored(copy: Path, cache: Path, edit: Edit) -> None:
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80\x04 never opened")
    parts = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None]}
    edit("model_index.json", {"_class_name": "StableDiffusionImg2ImgPipeline", **parts})
    assert isinstance(open_checkpoint(str(copy), cache=cache), Checkpoint)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae", "tokenizer", "scheduler"])
@pytest.mark.parametrize("how", ["no folder", "null in the index", "not in the index"])
def test_row_8_component_missing(copy: Path, cache: Path, component: str, how: str) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    if how == "no folder":
        shutil.rmtree(copy / component)
    elif how == "null in the index":
        index[component] = [None, None]
    else:
        del index[component]
    (copy / "model_index.json").write_text(json.dumps(index))
    refused(copy, cache, f"has no {component}")


@pytest.mark.parametrize("name", ["text_encoder/config.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b" " * ((1 << 20) + 1), "is larger than 1 MiB"),
    ],
)
def test_row_8_config_malformed(copy: Path, cache: Path, name: str, content: bytes | None, reason: str) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    refused(copy, cache, f"{name} {reason}")


@pytest.mark.parametrize(
    ("component", "values", "reason"),
    [
        ("unet", {"in_channels": 9}, "in_channels is 9: an inpainting UNet; expected 4"),
        ("unet", {"in_channels": 8}, "in_channels is 8: an image-editing (pix2pix) UNet; expected 4"),
        ("unet", {"in_channels": 5}, "in_channels is 5; expected 4"),
        ("unet", {"in_channels": "4"}, "in_channels is '4'; expected 4"),
        ("unet", {"in_channels": [4]}, "in_channels is [4]; expected 4"),
        ("unet", {"out_channels": 8}, "out_channels is 8; expected 4"),
        ("unet", {"sample_size": 96}, "sample_size is 96; expected 64"),
        ("unet", {"sample_size": [64, 96]}, "sample_size is [64, 96]; expected 64"),
        ("unet", {"cross_attention_dim": 768}, "cross_attention_dim is 768; the text encoder's hidden_size is 32"),
        ("unet", {"cross_attention_dim": [32, 32]}, "cross_attention_dim is [32, 32]"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds is 10"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ("unet", {"encoder_hid_dim": 1024}, "encoder_hid_dim is 1024"),
        ("unet", {"attention_type": "gated"}, "attention_type is 'gated'"),
        ("unet", {"_class_name": "UNetMotionModel"}, "_class_name is 'UNetMotionModel'"),
        ("vae", {"latent_channels": 16}, "latent_channels is 16; expected 4"),
        ("vae", {"in_channels": 1}, "in_channels is 1; expected 3"),
        ("vae", {"block_out_channels": [8, 8, 16]}, "block_out_channels is [8, 8, 16]; expected 4 levels (factor 8)"),
        ("vae", {"block_out_channels": None}, "block_out_channels is None"),
        ("vae", {"block_out_channels": list(range(10**4))}, "block_out_channels is [0, 1, 2, 3, 4, 5, ...]"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0; expected a number above 0"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor is nan"),
        ("vae", {"scaling_factor": "0.18"}, "scaling_factor is '0.18'"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("vae", {"_class_name": "VQModel"}, "_class_name is 'VQModel'; expected AutoencoderKL"),
        ("text_encoder", {"model_type": "t5"}, "model_type is 't5'; expected clip_text_model"),
        ("text_encoder", {"hidden_size": "32"}, "hidden_size is '32'; expected a positive whole number"),
        ("text_encoder", {"vocab_size": None}, "vocab_size is None"),
        ("text_encoder", {"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        (
            "text_encoder",
            {"num_attention_heads": 5},
            "expected a multiple of num_attention_heads, 5",
        ),
        ("text_encoder", {"text_config": 1}, "text_config is 1; expected the text encoder's config"),
        ("text_encoder", {"layer_norm_eps": math.nan}, "layer_norm_eps is nan; expected finite numbers"),
        ("unet", {"in_channels": 4.0}, "in_channels is 4.0; expected 4"),
        ("unet", {"sample_size": 64.0}, "sample_size is 64.0; expected 64"),
        ("unet", {"sample_size": 32, "_diffusers_version": "0.9.0"}, "sample_size is 32; expected 64"),
        ("unet", {"cross_attention_dim": [32, 32, 32, 64]}, "cross_attention_dim is [32, 32, 32, 64]"),
        ("vae", {"down_block_types": ["DownEncoderBlock2D"] * 3}, "down_block_types is ['DownEncoderBlock2D'"),
        ("text_encoder", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'; expected epsilon or v_prediction"),
    ],
)
def test_row_7_other_networks_are_refused_by_field(
    copy: Path, cache: Path, edit: Edit, component: str, values: dict[str, Any], reason: str
) -> None:
    edit(f"{component}/{'scheduler_config' if component == 'scheduler' else 'config'}.json", values)
    refused(copy, cache, reason)


@pytest.mark.parametrize(
    ("component", "named"),
    [("unet", "SD3Transformer2DModel"), ("vae", "AsymmetricAutoencoderKL"), ("text_encoder", "T5EncoderModel")],
)
def test_row_7_other_classes_in_the_index(copy: Path, cache: Path, edit: Edit, component: str, named: str) -> None:
    edit("model_index.json", {component: ["diffusers", named]})
    refused(copy, cache, f"{component} is {named!r}; expected")


def test_fields_that_older_files_leave_out_are_v1s(copy: Path, cache: Path) -> None:
    for name, fields in {
        "unet/config.json": ["sample_size", "in_channels"],
        "vae/config.json": ["scaling_factor"],
        "text_encoder/config.json": ["max_position_embeddings"],
    }.items():
        config = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({key: value for key, value in config.items() if key not in fields}))
    checkpoint = open_checkpoint(str(copy), cache=cache)
    assert checkpoint.unet["sample_size"] == 64
    assert checkpoint.vae["scaling_factor"] == 0.18215
    assert checkpoint.text_encoder["max_position_embeddings"] == 77
    assert checkpoint.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("config", "guidance_scale"), [(None, 7.5), ({}, 7.5), ({"guidance_scale": None}, 7.5), ({"guidance_scale": 3}, 3)]
)
def test_a_checkpoint_recommends_a_guidance_scale_or_does_not(
    copy: Path, cache: Path, config: dict[str, Any] | None, guidance_scale: float
) -> None:
    plain = open_checkpoint(str(copy), cache=cache)
    if config is not None:
        (copy / "generation_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(copy), cache=cache)
    assert checkpoint.guidance_scale == guidance_scale
    # The same weights: a picture of theirs can be repeated.
    assert checkpoint.digest == plain.digest


@pytest.mark.parametrize("value", [math.nan, math.inf, 1001, -1001, "6", True, [6], {}], ids=str)
def test_guidance_that_cannot_be_is_refused(copy: Path, cache: Path, value: Any) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"guidance_scale": value}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: guidance_scale is .*; expected a number"):
        open_checkpoint(str(copy), cache=cache)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("unet/config.json", {"layers_per_block": 1_000_000}, "layers_per_block"),
        ("unet/config.json", {"layers_per_block": [2, 2, 2, 1000]}, "layers_per_block"),
        ("unet/config.json", {"transformer_layers_per_block": [[1, 10_000]]}, "transformer_layers_per_block"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 10_000}, "down_block_types"),
        ("unet/config.json", {"norm_num_groups": 10**400}, "norm_num_groups"),
        ("unet/config.json", {"attention_head_dim": [[[[1]]]]}, "attention_head_dim"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("text_encoder/config.json", {"vocab_size": 10**9}, "vocab_size"),
        ("vae/config.json", {"layers_per_block": -(10**9)}, "layers_per_block"),
    ],
    ids=lambda value: "",
)
def test_row_7_networks_that_would_be_built_until_memory_is_full(
    copy: Path, cache: Path, edit: Edit, name: str, values: dict[str, Any], named: str
) -> None:
    edit(name, values)
    with pytest.raises(CheckpointError, match=named) as caught:
        open_checkpoint(str(copy), cache=cache)
    assert len(caught.value.message) < 400
