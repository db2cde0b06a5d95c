"""A checkpoint as trees: structure and shapes from its configs, held against the weights that its files have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdrt.artefacts.manifest import ComponentName
from sdrt.checkpoint import Checkpoint
from sdrt.checkpoint.weight_file import WeightFile
from sdrt.checkpoint.weights import STEMS
from sdrt.errors import CheckpointError
from sdrt.inspect.block import Block
from sdrt.inspect.text_encoder import text_encoder_tree
from sdrt.inspect.unet import unet_tree
from sdrt.inspect.vae import decoder_tree, encoder_tree

#: Component -> the part of the checkpoint whose weights it computes with.
PARTS: dict[ComponentName, str] = {
    "text_encoder": "text_encoder",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}


def config_trees(
    text_encoder: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any], *, max_tokens: int | None = None
) -> dict[str, Block]:
    """The four components as trees, from a checkpoint's configs alone.

    Args:
        text_encoder: text_encoder/config.json.
        unet: unet/config.json.
        vae: vae/config.json.
        max_tokens: Tokens of a prompt; None is as many as the text encoder has positions.

    Raises:
        CheckpointError: A config has a structure that Stable Diffusion v1 has not.
    """
    size = unet["sample_size"]
    latent_size = size if isinstance(size, int) else size[0]
    return {
        "text_encoder": text_encoder_tree(text_encoder, max_tokens),
        "unet": unet_tree(unet, text_encoder["max_position_embeddings"] if max_tokens is None else max_tokens),
        "vae_encoder": encoder_tree(vae, latent_size),
        "vae_decoder": decoder_tree(vae, latent_size),
    }


def examine_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as plain values, but for ``tree`` of each component. No weights are read.

    Raises:
        CheckpointError: A config has a structure that Stable Diffusion v1 has not, or another number of weights than
            the file.
    """
    trees = config_trees(checkpoint.text_encoder, checkpoint.unet, checkpoint.vae, max_tokens=checkpoint.max_tokens)
    files = {part: _file(checkpoint.weight_files[part]) for part in STEMS}
    for part, file in files.items():
        expected = sum(trees[name].parameters for name, of in PARTS.items() if of == part)
        if file["parameters"] != expected:
            message = (
                f"{file['path']} has {file['parameters']:,} weights where {part}/config.json asks for {expected:,}"
            )
            raise CheckpointError(message, hint="the weights do not belong to this config; download it again")
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        "checkpoint": checkpoint.name,
        "checkpoint_digest": checkpoint.digest,
        "revision": checkpoint.revision,
        "variant": checkpoint.variant,
        "prediction_type": checkpoint.scheduler["prediction_type"],
        "guidance_scale": checkpoint.guidance_scale,
        "notes": list(checkpoint.notes),
        "parameters": sum(file["parameters"] for file in files.values()),
        "files": files,
        "components": {
            name: {"parameters": tree.parameters, "flops": tree.flops, "tree": tree} for name, tree in trees.items()
        },
    }


def _file(file: WeightFile) -> dict[str, Any]:
    """A file of weights: how many there are, their bytes, and how many tensors there are of each type."""
    entries = [tensor.entry for tensor in file.tensors.values()]
    return {
        "path": str(file.path),
        "parameters": sum(math.prod(entry.shape) for entry in entries),
        "size_bytes": sum(entry.end - entry.begin for entry in entries),
        "dtypes": dict(Counter(entry.dtype for entry in entries)),
    }
