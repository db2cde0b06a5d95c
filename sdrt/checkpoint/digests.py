"""Digests of checkpoints, and caches of the digests of large files and of the paths of checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdrt.errors import ResourceError
from sdrt.files import canonical_json, disk_errors, sha256_bytes, sha256_file, write_atomically

REMEMBERED_FROM_BYTES = 16 << 20  # smaller files are hashed in a few hundredths of a second
REMEMBERED_FILES = 256
REMEMBERED_PLACES = 8  # for each digest
VOLATILE_KEYS = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


class DigestMemory:
    """SHA-256 of files, cached in one JSON file by path, size, inode, mtime and ctime.

    The ctime of an inode cannot be set back, so a changed file is hashed again. The cache only saves time: if damaged,
    it is started anew; if it cannot be written, files are hashed each time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file's bytes, as 64 hex digits."""
        file = file.resolve()
        status = file.stat()
        if status.st_size < REMEMBERED_FROM_BYTES:
            return sha256_file(file)
        key = _key(file, status)
        known = self._read().get(key)
        if known is not None:
            return known
        digest = sha256_file(file)
        if _key(file, file.stat()) == key:
            self._remember(key, digest)
        return digest

    def _read(self) -> dict[str, str]:
        known = _known(self.path)
        return {key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64}

    def _remember(self, key: str, digest: str) -> None:
        known = self._read()
        known.pop(key, None)
        _keep(self.path, dict([*known.items(), (key, digest)][-REMEMBERED_FILES:]))


class Places:
    """Absolute paths of opened checkpoints by digest, kept in one JSON file of the cache folder.

    Like `DigestMemory`, it is started anew if damaged, and not kept if it cannot be written.
    """

    def __init__(self, cache: Path) -> None:
        self.path = cache / "places.json"

    def of(self, digest: str) -> list[Path]:
        """Return the paths of checkpoints with a digest, the last opened first; they may have changed since."""
        return [Path(place) for place in self._read().get(digest, [])]

    def remember(self, digest: str, place: Path) -> None:
        """Record a checkpoint's folder or file as the last opened."""
        known = self._read()
        places = known.pop(digest, [])
        if places[:1] == [str(place)]:
            return
        others = [other for other in places if other != str(place)]
        newest = [*known.items(), (digest, [str(place), *others][:REMEMBERED_PLACES])][-REMEMBERED_FILES:]
        _keep(self.path, dict(newest))

    def _read(self) -> dict[str, list[str]]:
        return {
            digest: [place for place in places if isinstance(place, str) and "\0" not in place]
            for digest, places in _known(self.path).items()
            if isinstance(places, list)
        }


def _known(path: Path) -> dict[str, Any]:
    """Return the JSON object of a cache file; empty if there is none."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(path: Path, known: Mapping[str, Any]) -> None:
    """Write a cache file; ignore failures, which only cost time."""
    with contextlib.suppress(ResourceError, FileNotFoundError), disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=1).encode())


def _key(file: Path, status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{file}:{status.st_size}:{status.st_dev}:{status.st_ino}:{times}"


def stable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys about its writer, which do not affect the computation."""
    return {key: value for key, value in config.items() if key not in VOLATILE_KEYS}


def checkpoint_digest(
    configs: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Path],
    tokenizer: Mapping[str, Any],
    memory: DigestMemory,
) -> str:
    """Return the SHA-256 over everything in a checkpoint that affects the computation, independent of its folder.

    Args:
        configs: Parsed configs by component.
        weights: Weight files by component.
        tokenizer: Tokenizer files and settings that decide ids, as `tokenizer_identity` returns them.
        memory: Cache of the digests of the weight files.
    """
    parts = {
        "configs": {component: stable_config(config) for component, config in configs.items()},
        "weights": {component: memory.sha256(path) for component, path in weights.items()},
        "tokenizer": tokenizer,
    }
    return sha256_bytes(canonical_json(parts))
