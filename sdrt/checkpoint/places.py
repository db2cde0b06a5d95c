"""Lookup of the checkpoint of a record, which holds a name and a digest but no path."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.checkpoint.digests import Places
from sdrt.checkpoint.sources import DEMO, HUB_ID, default_cache, open_checkpoint
from sdrt.errors import SdrtError

if TYPE_CHECKING:
    from sdrt.artefacts.manifest import CheckpointRecord


def find_recorded(record: CheckpointRecord, *, cache: Path | None = None) -> tuple[str, str | None] | None:
    """Return source and revision by which a record's checkpoint can be opened; None if none is found.

    A checkpoint of the Hub is returned as its id and commit. Otherwise candidates are the folders and files that were
    opened before, and those of the record's name in the current folder; the first with the record's digest is
    returned, else the first.
    """
    if record.revision is not None and HUB_ID.fullmatch(record.name) and not _exists(Path(record.name)):
        return record.name, record.revision
    named = [Path(record.name), Path(f"{record.name}.safetensors")]
    remembered = Places(default_cache() if cache is None else cache).of(record.digest)
    # One of the record's name first, so that a repeated picture has the same record.
    remembered.sort(key=lambda path: record.name not in (path.name, path.stem))
    sources = [str(path) for path in (*remembered, *named) if _exists(path)]
    if record.name == DEMO:
        # "demo" names the built-in checkpoint, so paths are made absolute.
        sources = [DEMO, *(str(Path(source).absolute()) for source in sources)]
    for source in sources if len(sources) > 1 else ():
        with contextlib.suppress(SdrtError):
            if open_checkpoint(source, cache=cache).digest == record.digest:
                return source, None
    return (sources[0], None) if sources else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # An invalid file name, or an unreadable folder.
        return False
