"""Hints for sources that are not a checkpoint themselves, but near one: a part of it, a folder around it, a URL."""

from __future__ import annotations

import re
from pathlib import Path

from sdrt.checkpoint.weights import PICKLE_HINT, is_pickle_name

INDEX = "model_index.json"
#: The manifest of a bundle or an engine set, as in sdrt.artefacts.manifest.
MANIFEST = "manifest.json"
SAFETENSORS = ".safetensors"
SOURCE_HINT = 'give a folder, a .safetensors file, a Hub id such as org/name, or "demo"'
FOLDER_HINT = "give a folder in the diffusers layout, or a single .safetensors file"
HUB_URL = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/\w+/[^/]+(?:/([^?]+))?)?/?(?:\?.*)?"
)
HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([^/].*)")


def is_safetensors_name(name: str) -> bool:
    """Return whether a name has the suffix .safetensors, in upper or lower case."""
    return name.lower().endswith(SAFETENSORS)


def is_weights_name(name: str) -> bool:
    """Return whether a name is a file of weights rather than a Hub id."""
    return is_safetensors_name(name) or is_pickle_name(name)


def pipeline_folder(path: Path) -> Path | None:
    """Return the folder in the diffusers layout that contains a file or folder, or None."""
    above = list(path.absolute().parents)[:2]
    return next((folder for folder in above if (folder / INDEX).is_file()), None)


def file_hint(path: Path) -> str:
    """Return the hint for a file that is not a .safetensors file."""
    folder = pipeline_folder(path)
    if folder is not None:
        return f"give the folder it belongs to: {folder}"
    return "give a .safetensors file, or a folder in the diffusers layout"


def folder_hint(folder: Path) -> str:
    """Return the hint for a folder without model_index.json."""
    if (folder / MANIFEST).is_file():
        return "it is a bundle or an engine set: give it by --bundle or --engines"
    outer = pipeline_folder(folder)
    if outer is not None:
        return f"give the folder it belongs to: {outer}"
    inner = [index.parent for pattern in (f"*/{INDEX}", f"snapshots/*/{INDEX}") for index in folder.glob(pattern)]
    if inner:
        return f"give the folder inside of it: {max(inner, key=lambda path: path.stat().st_mtime)}"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    single = [path for path in files if is_safetensors_name(path.name)]
    if single:
        return f"give the file itself: {single[0]}" + (f" (or one of {len(single) - 1} others)" if single[1:] else "")
    if any(is_pickle_name(path.name) for path in files):
        return PICKLE_HINT
    return FOLDER_HINT


def nothing_hint(source: str) -> str:
    """Return the hint for a source that does not exist; URLs of the Hub are recognised."""
    found = HUB_URL.fullmatch(source)
    if found is None and is_weights_name(source):
        found = HUB_FILE.fullmatch(source)
    if found is None:
        return SOURCE_HINT
    repo, file = found.groups()
    if file is None:
        return f"give its Hub id: {repo}"
    if not is_safetensors_name(file):
        return f"give the Hub id {repo}, or a .safetensors file of it, downloaded"
    return f"check the path; a file from the Hub is downloaded first: hf download {repo} {file} --local-dir ."
