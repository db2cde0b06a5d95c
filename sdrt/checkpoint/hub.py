"""Checkpoints from the Hugging Face Hub, through the Hub's own cache (HF_HOME, HF_HUB_OFFLINE)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from sdrt.checkpoint.configs import CLASSES, GENERATION_CONFIG
from sdrt.checkpoint.weights import (
    PICKLE_HINT,
    STEMS,
    is_pickle_name,
    no_such_variant,
    variants_among,
    weight_names,
)
from sdrt.errors import BackendUnavailableError, CheckpointError, TrustError
from sdrt.files import check_readable, disk_errors
from sdrt.install_lines import requirement_line

COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX = "model_index.json"
CONFIG_SUFFIXES = (".json", ".txt")
LISTING_TIMEOUT_S = 30.0
#: Most cached commits that an error lists.
MOST_COMMITS = 5


def download(repo: str, revision: str | None, variant: str | None = None) -> tuple[Path, str]:
    """Download a checkpoint's files to the Hub's cache, never pickles.

    A commit that is complete in the cache is used without a request, since commits never change. A branch or tag is
    looked up each time, unless HF_HUB_OFFLINE=1.

    Args:
        repo: "org/name".
        revision: Branch, tag or commit; None for the default branch.
        variant: The variant of the weights; None for the plain files.

    Returns:
        The snapshot's folder (of links into the cache) and its commit.

    Raises:
        UsageError: No component has weights of the variant.
        CheckpointError: The Hub or, offline, the cache does not have the checkpoint; or the Hub cannot be reached.
        TrustError: A component has pickled weights only.
        BackendUnavailableError: huggingface_hub is not installed.
        ResourceError: The Hub's cache cannot be written.
    """
    try:
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            "huggingface_hub is not installed", hint=requirement_line("huggingface_hub", extra="export")
        ) from error
    what = f"{repo} at {revision}" if revision else repo
    _check_cache(repo)
    try:
        if constants.HF_HUB_OFFLINE:
            return _cached(repo, revision)
        if revision is not None and COMMIT.fullmatch(revision):
            folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
            if is_whole(folder, variant):
                return folder, revision
        return _fetched(repo, revision, variant)
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repo, revision, Path(constants.HF_HUB_CACHE)) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"the Hub has no {what}", hint="give a branch, tag or commit that exists") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name (no such path exists here either); for a private or gated one: hf auth login"
        raise CheckpointError(f"the Hub has no {repo}, or does not show it to you", hint=hint) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo!r} is not a Hub id", hint="give org/name, or the path of a checkpoint") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # base class of the HTTP library that it uses
        hint = "check the network; HF_HUB_OFFLINE=1 uses what the cache holds"
        raise CheckpointError(f"the Hub cannot be reached for {what} ({type(error).__name__})", hint=hint) from error


def _not_cached(repo: str, revision: str | None, cache: Path) -> CheckpointError:
    """Return the error for a checkpoint that is not in the cache when off-line; it lists the cached commits."""
    what = f"{repo} at {revision}" if revision else repo
    missing = f"{what} is not in the Hub's cache, and the Hub is off-line"
    try:
        snapshots = (cache / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
        commits = sorted(folder.name for folder in snapshots if is_whole(folder))
    except OSError:
        commits = []
    if not commits:
        return CheckpointError(missing, hint="unset HF_HUB_OFFLINE to download it, or give a folder")
    if revision is None or not COMMIT.fullmatch(revision):
        missing = f"which commit {what} means is not in the Hub's cache, and the Hub is off-line"
    listed = ", ".join(commits[:MOST_COMMITS]) + (", ..." if len(commits) > MOST_COMMITS else "")
    hint = f"add --revision {commits[0]}, or unset HF_HUB_OFFLINE to download it"
    return CheckpointError(f"{missing}; the cache holds {listed}", hint=hint)


def is_whole(folder: Path, variant: str | None = None) -> bool:
    """Return whether a snapshot has its index, and every component's config and weights.

    With a variant, every component must have weights of it, since only the Hub knows whether one has none.
    """
    configs = [folder / component / "config.json" for component in STEMS]
    return all(path.exists() for path in (folder / INDEX, folder / "tokenizer", *configs)) and all(
        any((folder / component / name).exists() for name in weight_names(component, variant)[: 1 if variant else None])
        for component in STEMS
    )


def wanted_files(repo: str, names: Collection[str], variant: str | None = None) -> list[str]:
    """Return a repository's files that a checkpoint needs: configs, tokenizer, one weight file for each component.

    generation_config.json is included, if there is one.

    Raises:
        UsageError: No component has weights of the variant.
        CheckpointError: It is no checkpoint in the diffusers layout, or a component has no weights.
        TrustError: A component has pickled weights only.
    """
    if INDEX not in names:
        hint = "give a Hub id in the diffusers layout, or download its .safetensors file and give that"
        raise CheckpointError(f"{repo} has no {INDEX}", hint=hint)
    variants = {part: _variants(part, names) for part in STEMS}
    if variant is not None and not any(variant in found for found in variants.values()):
        raise no_such_variant(repo, variant, {name for found in variants.values() for name in found})
    wanted = [name for name in (INDEX, GENERATION_CONFIG) if name in names]
    for component in CLASSES:
        wanted += [name for name in names if re.fullmatch(rf"{component}/[^/]+", name) and _is_config(name)]
    for component in STEMS:
        present = [f"{component}/{name}" for name in weight_names(component, variant) if f"{component}/{name}" in names]
        if not present:
            if variants[component]:
                hint = f"choose one with --variant: {', '.join(variants[component])}"
                raise CheckpointError(f"{repo} has weights of {component} of other variants only", hint=hint)
            if any(name.startswith(f"{component}/") and is_pickle_name(name) for name in names):
                raise TrustError(f"{repo} holds only pickled weights of {component}", hint=PICKLE_HINT)
            raise CheckpointError(f"{repo} has no weights of {component}", hint="give a whole checkpoint")
        wanted.append(present[0])
    return wanted


def _variants(component: str, names: Collection[str]) -> list[str]:
    start = f"{component}/"
    return variants_among(component, [name.removeprefix(start) for name in names if name.startswith(start)])


def _check_cache(repo: str) -> None:
    """Raise ResourceError if the cache is unreadable, which the Hub's library treats like a missing file.

    Raises:
        ResourceError: No permission for the cache, or for its folder of the repository.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    kept = cache / f"models--{repo.replace('/', '--')}"
    for folder in (cache, kept, kept / "refs", kept / "snapshots"):
        check_readable(folder)


def _is_config(name: str) -> bool:
    return name.endswith(CONFIG_SUFFIXES) and not name.endswith(".index.json")


def _cached(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[INDEX]))
    return folder, folder.name


def _fetched(repo: str, revision: str | None, variant: str | None) -> tuple[Path, str]:
    from huggingface_hub import HfApi, constants, snapshot_download

    listing = HfApi().model_info(repo, revision=revision, timeout=LISTING_TIMEOUT_S)
    wanted = wanted_files(repo, [file.rfilename for file in listing.siblings or []], variant)
    with disk_errors(Path(constants.HF_HUB_CACHE)):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    return folder, folder.name
