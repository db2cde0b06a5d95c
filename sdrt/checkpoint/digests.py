"""Digests of checkpoints, and a memory of the digests of large files, so that a second run need not read them."""

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
VOLATILE_KEYS = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


class DigestMemory:
    """SHA-256 of files, remembered in one JSON file under path, size, inode and the times of change.

    The inode's change time (ctime) cannot be set back, so a file that was written to is hashed again. The memory saves
    time and nothing else: where it is damaged it is started anew, where it cannot be written it is done without.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file's bytes, as 64 hex digits."""
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
        try:
            known = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64}

    def _remember(self, key: str, digest: str) -> None:
        known = self._read()
        known.pop(key, None)
        newest = [*known.items(), (key, digest)][-REMEMBERED_FILES:]
        # A folder that cannot be written costs time only.
        with contextlib.suppress(ResourceError, FileNotFoundError), disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(dict(newest), indent=1).encode())


def _key(file: Path, status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{file}:{status.st_size}:{status.st_dev}:{status.st_ino}:{times}"


def stable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that say who wrote it and how, which change nothing that is computed."""
    return {key: value for key, value in config.items() if key not in VOLATILE_KEYS}


def checkpoint_digest(
    configs: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Path],
    tokenizer: Mapping[str, Any],
    memory: DigestMemory,
) -> str:
    """One digest over all of a checkpoint that decides what is computed, whatever folder it lies in.

    Args:
        configs: Parsed configs by component.
        weights: Weight files by component.
        tokenizer: What decides the tokenizer's ids.
        memory: Where the digests of the weight files are remembered.
    """
    parts = {
        "configs": {component: stable_config(config) for component, config in configs.items()},
        "weights": {component: memory.sha256(path) for component, path in weights.items()},
        "tokenizer": tokenizer,
    }
    return sha256_bytes(canonical_json(parts))
