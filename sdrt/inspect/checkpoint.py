"""A checkpoint as trees: structure and shapes from its configs, checked against the number of weights in its files."""

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

#: Component -> the folder of the checkpoint that has its weights.
PARTS: dict[ComponentName, str] = {
    "text_encoder": "text_encoder",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}


def config_trees(
    text_encoder: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any], *, max_tokens: int | None = None
) -> dict[str, Block]:
    """Build the trees of the four components from a checkpoint's configs alone.

    Args:
        text_encoder: Contents of text_encoder/config.json.
        unet: Contents of unet/config.json.
        vae: Contents of vae/config.json.
        max_tokens: Number of tokens of a prompt; None is the text encoder's number of positions.

    Raises:
        CheckpointError: A config describes a structure that Stable Diffusion v1 does not have.
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
    """Return the contents of a checkpoint as JSON values, except ``tree`` of each component. Reads no weights.

    Raises:
        CheckpointError: A config describes a structure that Stable Diffusion v1 does not have, or its number of weights
            differs from the file's.
    """
    trees = config_trees(checkpoint.text_encoder, checkpoint.unet, checkpoint.vae, max_tokens=checkpoint.max_tokens)
    files = {part: _file(checkpoint.weight_files[part]) for part in STEMS}
    for part, file in files.items():
        expected = sum(trees[name].parameters for name, of in PARTS.items() if of == part)
        if file["parameters"] != expected:
            message = f"{file['path']} has {file['parameters']:,} weights; {part}/config.json requires {expected:,}"
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
    """Return path, number of weights, bytes, and number of tensors by type of a weights file."""
    entries = [tensor.entry for tensor in file.tensors.values()]
    return {
        "path": str(file.path),
        "parameters": sum(math.prod(entry.shape) for entry in entries),
        "size_bytes": sum(entry.end - entry.begin for entry in entries),
        "dtypes": dict(Counter(entry.dtype for entry in entries)),
    }
