"""Opening of a checkpoint by its source: a folder, a file, a Hub id or "demo"."""

from __future__ import annotations

import re
from pathlib import Path

from sdrt.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.checkpoint.digests import DigestMemory, Places
from sdrt.checkpoint.misplaced import file_hint, is_safetensors_name, is_weights_name, nothing_hint
from sdrt.checkpoint.weights import check_variant
from sdrt.errors import CheckpointError, TrustError, UsageError
from sdrt.files import is_there, system_errors, utf8_text

DEMO = "demo"
#: The demo checkpoint, which the package contains.
DEMO_FOLDER = SD_V1.parent / "demo-checkpoint"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@system_errors()
def open_checkpoint(
    source: str, *, revision: str | None = None, variant: str | None = None, cache: Path | None = None
) -> Checkpoint:
    """Find a Stable Diffusion v1 checkpoint, check it and describe it; no weights are loaded.

    Args:
        source: A folder in the diffusers layout, a single .safetensors file in the original layout, a Hub id
            ("org/name"), or "demo". A folder called demo is "./demo".
        revision: Branch, tag or commit, for a Hub id. The result holds the commit; the caller compares it with an
            earlier one if a branch may have moved.
        variant: The variant of a folder's or a Hub id's weights, such as "fp16" or "non_ema"; None for the plain
            files, or the fp16 files of a component that has no others.
        cache: Folder of converted single files and cached digests; None for the user's cache folder.

    Raises:
        UsageError: The source does not exist, or has no revisions or variants but one was given.
        CheckpointError: It is malformed, incomplete or not Stable Diffusion v1; or the Hub does not provide it.
        TrustError: It is pickled.
        ResourceError: It cannot be read, for example without permission, or the cache cannot be written.
        TimeLimitError: Another process holds the conversion of the same file for too long.
    """
    check_variant(variant)
    cache = default_cache() if cache is None else cache
    memory = DigestMemory(cache / "digests.json")
    path = Path(source)
    is_hub_id = source != DEMO and not is_there(path) and HUB_ID.fullmatch(source) is not None
    is_hub_id = is_hub_id and not is_weights_name(source)
    if revision is not None and not is_hub_id:
        hint = "leave out --revision, or give a Hub id such as org/name"
        raise UsageError(f"--revision is for checkpoints from the Hub; {source!r} is not one", hint=hint)
    if source == DEMO:
        return read_checkpoint(DEMO_FOLDER, name=DEMO, memory=memory, variant=variant)
    if source and path.is_dir():
        opened = read_checkpoint(path.absolute(), name=utf8_text(path.resolve().name), memory=memory, variant=variant)
        Places(cache).remember(opened.digest, path.absolute())
        return opened
    if path.is_file():
        if variant is not None:
            hint = "leave out --variant: a single file holds one set of weights"
            raise UsageError(f"--variant is for folders and Hub ids; {source!r} is a file", hint=hint)
        opened = _open_file(path, cache, memory)
        Places(cache).remember(opened.digest, path.absolute())
        return opened
    if is_hub_id:
        from sdrt.checkpoint.hub import download

        folder, commit = download(source, revision, variant)
        return read_checkpoint(folder, name=source, memory=memory, revision=commit, variant=variant)
    raise UsageError(f"--checkpoint: {source!r} does not exist", hint=nothing_hint(source))


def _open_file(path: Path, cache: Path, memory: DigestMemory) -> Checkpoint:
    from sdrt.checkpoint.single_file import open_single_file
    from sdrt.checkpoint.weights import PICKLE_HINT, is_pickle_name

    if is_pickle_name(path.name):
        raise TrustError(f"{path} is a pickle", hint=PICKLE_HINT)
    if not is_safetensors_name(path.name):
        raise CheckpointError(f"{path} is not a .safetensors file", hint=file_hint(path))
    return open_single_file(path, cache, memory)


def default_cache() -> Path:
    """Return the user's cache folder for converted files, digests and paths of checkpoints."""
    from platformdirs import user_cache_path

    return user_cache_path("sdrt") / "checkpoints"
