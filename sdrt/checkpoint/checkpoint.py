"""The description of a checkpoint: a folder in the diffusers layout that was checked to be Stable Diffusion v1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrt.checkpoint.configs import read_configs, read_guidance_scale
from sdrt.checkpoint.digests import DigestMemory, checkpoint_digest
from sdrt.checkpoint.tokenizer import build_tokenizer_json, prompt_length, tokenizer_identity
from sdrt.checkpoint.weight_file import WeightFile, read_weight_file
from sdrt.checkpoint.weights import STEMS, find_variant_weights, weight_names


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. The configs are the parsed files, with v1's values for fields that older files lack.

    Attributes:
        path: A folder in the diffusers layout.
        name: Name in pictures and manifests: "demo", the folder's or file's name, or the Hub id.
        digest: SHA-256 over its configs, weights and tokenizer; independent of the folder.
        revision: The commit of a checkpoint from the Hub.
        text_encoder: text_encoder/config.json.
        unet: unet/config.json.
        vae: vae/config.json.
        scheduler: scheduler/scheduler_config.json.
        guidance_scale: Recommended scale, from generation_config.json; not part of the digest, since it is a default
            of requests only.
        max_tokens: Tokens of a prompt, start and end included: the tokenizer's model_max_length, at most the text
            encoder's max_position_embeddings.
        variant: The requested variant of the weights, such as "non_ema".
        weight_files: The weights by component, as their headers describe them.
        notes: Lines about tensors that were renamed, ignored or converted.
    """

    path: Path
    name: str
    digest: str
    revision: str | None
    text_encoder: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    guidance_scale: float
    max_tokens: int
    variant: str | None
    weight_files: dict[str, WeightFile]
    notes: tuple[str, ...]

    def weights(self, component: str) -> Path:
        """Return the .safetensors file of "text_encoder", "unet" or "vae", links followed."""
        return self.weight_files[component].path


def read_checkpoint(
    folder: Path, *, name: str, memory: DigestMemory, revision: str | None = None, variant: str | None = None
) -> Checkpoint:
    """Check and describe a folder in the diffusers layout; weights are hashed, but not loaded.

    Args:
        folder: The checkpoint.
        name: Name in pictures and manifests.
        memory: Cache of the digests of large files.
        revision: The commit of a checkpoint from the Hub.
        variant: The variant of the weights, as in diffusers; None for the plain files, or the fp16 files of a component
            that has no others.

    Raises:
        UsageError: No component has weights of that variant.
        CheckpointError: It is incomplete, malformed or not Stable Diffusion v1; the message names the file.
        TrustError: It holds pickled weights only.
    """
    configs = read_configs(folder)
    weights = find_variant_weights(folder, variant)
    layers = configs["text_encoder"].get("num_hidden_layers")
    files = {component: read_weight_file(weights[component], component, layers) for component in STEMS}
    notes = [*_plain_instead(folder, variant), *(note for file in files.values() for note in file.notes)]
    guidance_scale = read_guidance_scale(folder)
    max_tokens = prompt_length(folder / "tokenizer", configs["text_encoder"]["max_position_embeddings"])
    digest = checkpoint_digest(configs, weights, tokenizer_identity(folder / "tokenizer", max_tokens), memory)
    return Checkpoint(
        folder,
        name,
        digest,
        revision,
        **configs,
        guidance_scale=guidance_scale,
        max_tokens=max_tokens,
        variant=variant,
        weight_files=files,
        notes=tuple(notes),
    )


def _plain_instead(folder: Path, variant: str | None) -> list[str]:
    """Return a line for each component that has no weights of the variant."""
    if variant is None:
        return []
    wanted = {component: folder / component / weight_names(component, variant)[0] for component in STEMS}
    return [f"{path} is missing: {name}'s plain weights are read" for name, path in wanted.items() if not path.exists()]


def tokenizer_json(checkpoint: Checkpoint) -> bytes:
    """Build the checkpoint's tokenizer as one tokenizer.json; it pads to ``max_tokens`` and does not truncate.

    Raises:
        CheckpointError: The tokenizer is malformed or does not fit the text encoder.
    """
    vocab_size = checkpoint.text_encoder["vocab_size"]
    return build_tokenizer_json(checkpoint.path / "tokenizer", checkpoint.max_tokens, vocab_size)
