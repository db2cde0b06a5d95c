"""Selection of a component's file of weights: safetensors only, of the requested variant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sdrt.errors import CheckpointError, TrustError, UsageError

STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
#: The variant that is read by default if a component has no plain file.
HALF = "fp16"
VARIANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Part of the name of a shard, or of the index of shards.
_SHARD = re.compile(r"-\d{5}-of-\d{5}|\.safetensors\.index\.")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
PICKLE_HINT = "get the checkpoint in safetensors; pickle can run code and sdrt never opens it"


def weight_names(component: str, variant: str | None = None) -> list[str]:
    """Return the possible file names of a component's weights, the preferred one first."""
    stem = STEMS[component]
    plain = f"{stem}.safetensors"
    return [plain, f"{stem}.{HALF}.safetensors"] if variant is None else [f"{stem}.{variant}.safetensors", plain]


def variants_among(component: str, names: Iterable[str]) -> list[str]:
    """Return the variants of a component's weights among the names of its files."""
    pattern = re.compile(rf"{STEMS[component]}\.({VARIANT.pattern})\.safetensors")
    found = {match[1] for name in names if (match := pattern.fullmatch(name))}
    return sorted(name for name in found if not _SHARD.search(name))


def check_variant(variant: str | None) -> None:
    """Raise UsageError unless a variant can be part of a file name."""
    if variant is not None and not VARIANT.fullmatch(variant):
        hint = "give the part of the file name, such as bf16 for model.bf16.safetensors"
        raise UsageError(f"--variant is {variant[:60]!r}; expected letters, digits, - and _", hint=hint)


def no_such_variant(place: str, variant: str, present: Iterable[str]) -> UsageError:
    """Return the error for a variant that no component of a checkpoint has."""
    found = sorted(present)
    hint = f"it has {', '.join(found)}" if found else "it has no variants; leave --variant out"
    return UsageError(f"--variant: {place} has no weights of variant {variant}", hint=hint)


def is_pickle_name(name: str) -> bool:
    """Return whether a name has a suffix of pickled weights."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def find_variant_weights(folder: Path, variant: str | None) -> dict[str, Path]:
    """Return the weight file of each component, links followed.

    As in diffusers, a component without weights of the variant is read from its plain file, but at least one component
    must have them.

    Raises:
        UsageError: No component has weights of the variant.
        CheckpointError: A component has no weights, or they are split into shards.
        TrustError: A component has pickled weights only.
    """
    check_variant(variant)
    if variant is not None:
        present = {name for component in STEMS for name in variants_among(component, _names(folder / component))}
        if variant not in present:
            raise no_such_variant(str(folder), variant, present)
    return {component: find_weights(folder, component, variant) for component in STEMS}


def find_weights(folder: Path, component: str, variant: str | None = None) -> Path:
    """Return the weight file of ``folder/component``, links followed (snapshots in the Hub's cache are links).

    Raises:
        CheckpointError: There are no weights, or they are split into shards.
        TrustError: There are pickled weights only.
    """
    for name in weight_names(component, variant):
        path = folder / component / name
        if path.is_file():
            return path.resolve()
    expected = folder / component / f"{STEMS[component]}.safetensors"
    if expected.is_symlink():
        hint = "download it again: the file it points to is gone"
        raise CheckpointError(f"{expected} is a link to nothing", hint=hint)
    present = _names(folder / component)
    if any(_SHARD.search(name) for name in present):
        hint = "save it again with max_shard_size='10GB'"
        raise CheckpointError(f"{expected} is missing: the weights are split into shards", hint=hint)
    if variants := variants_among(component, present):
        hint = f"choose one with --variant: {', '.join(variants)}"
        raise CheckpointError(f"{expected} is missing; there are weights of other variants", hint=hint)
    pickles = [name for name in present if is_pickle_name(name)]
    if pickles:
        raise TrustError(f"{folder / component} holds only pickled weights ({pickles[0]})", hint=PICKLE_HINT)
    raise CheckpointError(f"{expected} is missing", hint="download or save the checkpoint again")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
