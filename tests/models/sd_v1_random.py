"""The full-size Stable Diffusion v1 checkpoint with seeded random weights: `python -m tests.models.sd_v1_random`.

v1.4's configs: CLIP ViT-L/14's text encoder, the UNet of 859,520,964 parameters, AutoencoderKL; float32, 4.3 GB. Each
tensor is drawn and written by itself, so that no more than the largest is in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdrt.checkpoint.checkpoint import read_checkpoint
from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer
from sdrt.checkpoint.digests import DigestMemory
from sdrt.checkpoint.safetensors_header import header_bytes
from sdrt.checkpoint.weights import STEMS, weight_names
from sdrt.errors import CheckpointError
from sdrt.files import folder_published_as
from tests.models.tiny import v1_config, write_configs

# Standard deviation of a weight times the square root of its fan-in. 1 keeps the variance through a linear layer; SiLU
# takes about two thirds of it, which the last convolutions give back: predicted noise has a deviation near 1, pictures
# near 0.5.
GAINS = {"unet/conv_out.weight": 1.7, "vae/decoder.conv_out.weight": 0.8}
EMBEDDING_STD = 0.02  # as CLIP initialises its embeddings


def sd_v1_random(out: Path, *, seed: int = 0, configs: Mapping[str, Any] | None = None) -> Path:
    """Write the checkpoint unless it exists.

    Args:
        out: A folder; published when it is whole.
        seed: Equal seeds give equal bytes.
        configs: Configs of text_encoder, unet and vae in place of v1.4's.

    Returns:
        The folder.
    """
    if is_whole(out):
        return out
    if configs is None:
        configs = {component: v1_config(component) for component in STEMS}
    with folder_published_as(out) as part:
        write_configs(part, configs, {})
        write_clip_tokenizer(part / "tokenizer")
        for component in STEMS:
            write_random_weights(part, component, tensor_shapes(component, configs[component]), seed)
    return out


def is_whole(folder: Path) -> bool:
    """Return whether the folder holds a checkpoint whose weight files have the sizes that their headers state."""
    if not folder.is_dir():
        return False
    try:
        read_checkpoint(folder, name=folder.name, memory=DigestMemory(folder.parent / "digests.json"))
    except CheckpointError:
        return False
    return True


def tensor_shapes(component: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names, as in v1.4's files, and shapes of a component's tensors."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if component == "text_encoder":
            module: torch.nn.Module = CLIPTextModel(CLIPTextConfig(**config))
        else:
            module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component].from_config(dict(config))
    prefix = "text_model." if component == "text_encoder" else ""
    return {prefix + name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def write_random_weights(folder: Path, component: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Write a component's weight file."""
    with (folder / component / weight_names(component)[0]).open("wb") as file:
        file.write(header_bytes({name: ("F32", shapes[name]) for name in sorted(shapes)}))
        for name in sorted(shapes):
            file.write(random_tensor(f"{component}/{name}", shapes[name], seed))


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> memoryview:
    """Draw one tensor's float32 bytes; they depend on its name, its shape and the seed only.

    Normalisations are near the identity, other weights normal with a deviation of 1/sqrt(fan-in).
    """
    import numpy as np

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    normal = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    values = normal.standard_normal(shape, dtype=np.float32)
    if "embedding.weight" in name:
        values *= EMBEDDING_STD
    elif len(shape) == 1:
        values *= EMBEDDING_STD
        values += 1 if "norm" in name and name.endswith(".weight") else 0
    else:
        values *= GAINS.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))
    return values.astype("<f4", copy=False).data.cast("B")


def main() -> None:
    """Write it from the command line, and print a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if is_whole(arguments.out):
        print(f"{arguments.out} is there already")
        return
    start = time.monotonic()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sd_v1_random(arguments.out, seed=arguments.seed)
    print(f"{arguments.out}: made in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
