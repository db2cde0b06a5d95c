"""A checkpoint in one .safetensors file: round trips, what is refused, the cache."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from sdrt.checkpoint import open_checkpoint, single_file
from sdrt.checkpoint.checkpoint import read_checkpoint
from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.checkpoint.single_file import converted_folder
from sdrt.checkpoint.weights import STEMS, find_weights
from sdrt.errors import CheckpointError, ResourceError, TimeLimitError
from tests.checkpoint.original_layout import original_tensors
from tests.models import odd_checkpoints, tiny_checkpoint

JUNK = {
    "alphas_cumprod": torch.ones(10),
    "model_ema.decay": torch.tensor(0.5),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
    "first_stage_model.loss.logvar": torch.ones(1),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
}


def as_single_file(folder: Path, out: Path, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """The folder's three networks in one file, under the original names."""
    tensors = dict(extra or {})
    for component in STEMS:
        config = json.loads((folder / component / "config.json").read_bytes())
        tensors |= original_tensors(component, load_file(find_weights(folder, component)), config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)
    return out


def memory(cache: Path) -> DigestMemory:
    """A memory of digests in the cache."""
    return DigestMemory(cache / "digests.json")


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as one file, with what training runs leave in such files."""
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
    folder = converted_folder(file, cache, memory(cache), configs=source)
    checkpoint = read_checkpoint(folder, name="one", memory=memory(cache))
    loaders: dict[str, Callable[..., torch.nn.Module]] = {
        "text_encoder": load_text_encoder,
        "unet": load_unet,
        "vae": load_vae,
    }
    for component, load in loaders.items():
        state = load(checkpoint).state_dict()
        plain = {key.removeprefix("text_model."): value for key, value in expected[component].items()}
        assert {key.removeprefix("text_model.") for key in state} == plain.keys()
        for key, value in state.items():
            assert torch.equal(value, plain[key.removeprefix("text_model.")]), key
    assert checkpoint.vae["scaling_factor"] == json.loads((source / "vae/config.json").read_bytes())["scaling_factor"]


def test_converted_once_and_again_only_when_the_file_changes(file: Path, tiny: Path, cache: Path) -> None:
    first = converted_folder(file, cache, memory(cache), configs=tiny)
    stamp = (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert converted_folder(file, cache, memory(cache), configs=tiny) == first
    assert (first / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == stamp
    as_single_file(tiny, file, {**JUNK, "alphas_cumprod": torch.zeros(10)})
    assert converted_folder(file, cache, memory(cache), configs=tiny) != first


def test_v_prediction_mark_is_honoured(tiny: Path, tmp_path: Path, cache: Path) -> None:
    file = as_single_file(tiny, tmp_path / "v.safetensors", {"v_pred": torch.zeros(0)})
    folder = converted_folder(file, cache, memory(cache), configs=tiny)
    assert read_checkpoint(folder, name="v", memory=memory(cache)).scheduler["prediction_type"] == "v_prediction"


def test_text_encoder_without_its_inner_prefix(file: Path, tiny: Path, cache: Path) -> None:
    tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(file).items()}
    save_file(tensors, file)
    checkpoint = read_checkpoint(
        converted_folder(file, cache, memory(cache), configs=tiny), name="", memory=memory(cache)
    )
    expected = load_file(find_weights(tiny, "text_encoder"))["text_model.final_layer_norm.weight"]
    assert torch.equal(load_text_encoder(checkpoint).get_parameter("final_layer_norm.weight"), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conditioner.embedders.1.model.x": (1,)}, "is Stable Diffusion XL; expected Stable Diffusion v1"),
        ({"cond_stage_model.model.token_embedding.weight": (1,)}, "is Stable Diffusion v2"),
        ({"joint_blocks.0.x": (1,)}, "is Stable Diffusion 3"),
        ({"double_blocks.0.x": (1,)}, "is Flux"),
        ({"lora_unet_down_blocks.lora_up.weight": (1,)}, "is a LoRA"),
        ({"control_model.x": (1,)}, "is a ControlNet"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)}, "is an inpainting checkpoint"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (32, 8, 3, 3)}, "is an image-editing (pix2pix) checkpoint"),
        ({"ztsnr": (0,)}, "zero-terminal-SNR"),
        ({"cond_stage_model.": None}, "has no text_encoder"),
        ({"model.diffusion_model.": None}, "has no unet"),
        ({"first_stage_model.": None}, "has no vae"),
    ],
)
def test_what_is_not_stable_diffusion_v1_is_refused(
    file: Path, cache: Path, change: dict[str, Any], reason: str
) -> None:
    tensors = load_file(file)
    for name, shape in change.items():
        if shape is None:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(name)}
        else:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        open_checkpoint(str(file), cache=cache)
    assert not (cache / "single-file").exists()


def test_other_widths_than_v1s_are_refused_since_a_single_file_has_no_configs(file: Path, cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"input_blocks.0.0.weight has shape \[32, 4, 3, 3\]; .* \[320, 4, 3, 3\]"
    ):
        open_checkpoint(str(file), cache=cache)
    assert not (cache / "single-file").exists()


def test_tensors_that_come_to_one_name_are_refused(file: Path, tiny: Path, cache: Path) -> None:
    tensors = load_file(file)
    tensors["cond_stage_model.transformer.final_layer_norm.weight"] = torch.zeros(32)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="comes to the same tensor as another"):
        converted_folder(file, cache, memory(cache), configs=tiny)
    assert [path.name for path in (cache / "single-file").iterdir()] == [
        path.name for path in (cache / "single-file").glob("*.lock")
    ]


def test_lock_that_never_frees(file: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_file, "LOCK_TIMEOUT_S", 0.05)
    folder = cache / "single-file" / memory(cache).sha256(file)
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_suffix(".lock")), pytest.raises(TimeLimitError, match="has held"):
        converted_folder(file, cache, memory(cache), configs=tiny)


def test_cache_that_is_a_file(file: Path, tiny: Path, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(ResourceError, match="a file stands where a folder should be"):
        converted_folder(file, cache, memory(cache), configs=tiny)


def test_configs_that_ship_are_whole() -> None:
    for name in ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in STEMS)):
        assert isinstance(json.loads((SD_V1 / name).read_bytes()), dict)
