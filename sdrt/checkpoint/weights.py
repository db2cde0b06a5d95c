"""Which file of a component holds its weights: safetensors and nothing else."""

from __future__ import annotations

from pathlib import Path

from sdrt.errors import CheckpointError, TrustError

STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
VARIANTS = ("", ".fp16")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
PICKLE_HINT = "get the checkpoint in safetensors; pickle can run code and sdrt never opens it"


def weight_names(component: str) -> list[str]:
    """File names under which a component's weights are looked for, the preferred one first."""
    return [f"{STEMS[component]}{variant}.safetensors" for variant in VARIANTS]


def is_pickle_name(name: str) -> bool:
    """Whether a file of that name is by convention a pickle."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def find_weights(folder: Path, component: str) -> Path:
    """The weight file of ``folder/component``, links followed (a snapshot in the Hub's cache is made of links).

    Raises:
        CheckpointError: There is none, or it is split into shards.
        TrustError: There are only pickled weights.
    """
    for name in weight_names(component):
        path = folder / component / name
        if path.is_file():
            return path.resolve()
    expected = folder / component / weight_names(component)[0]
    if expected.is_symlink():
        hint = "download it again: the file it points to is gone"
        raise CheckpointError(f"{expected} is a link to nothing", hint=hint)
    present = sorted(path.name for path in (folder / component).iterdir())
    pickles = [name for name in present if is_pickle_name(name)]
    if any(name.endswith(".safetensors.index.json") for name in present):
        hint = "save it again with max_shard_size='10GB'"
        raise CheckpointError(f"{expected} is missing: the weights are split into shards", hint=hint)
    if pickles:
        raise TrustError(f"{folder / component} holds only pickled weights ({pickles[0]})", hint=PICKLE_HINT)
    raise CheckpointError(f"{expected} is missing", hint="download or save the checkpoint again")
