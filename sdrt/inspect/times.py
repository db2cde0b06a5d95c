"""Times of components, from a benchmark's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.manifest import read_document
from sdrt.bench.schema import SCHEMA_VERSION, Bench, ContenderResult
from sdrt.errors import UsageError

LIMIT_BYTES = 64 << 20


def add_times(found: dict[str, Any], path: Path) -> None:
    """Add time and share of the total time to each component that a benchmark measured, and the run, in place.

    The benchmark must be of the same checkpoint, and for an engine set of the same backend and precision. The first
    such run of sdrt counts, at its smallest batch.

    Args:
        found: Result of `sdrt.inspect.examine.examine`.
        path: The benchmark's JSON file.

    Raises:
        ArtefactError: The file is not a benchmark of this or an earlier version of sdrt.
        UsageError: The benchmark is of another checkpoint, or has no such run.
    """
    hint = "give the JSON that sdrt bench wrote"
    bench = read_document(path, Bench, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)
    if bench.checkpoint_digest != found["checkpoint_digest"]:
        message = f"--benchmark: {path} is of another checkpoint, {bench.checkpoint}"
        raise UsageError(message, hint="run sdrt bench for this one")
    run = next((each for each in bench.contenders if _fits(each, found)), None)
    if run is None:
        raise UsageError(f"--benchmark: {path} has no run of sdrt's on these engines", hint="run sdrt bench for them")
    warm = min(run.warm, key=lambda each: each.batch)
    measured = {"text_encoder": warm.text_encoder, "unet": warm.unet, "vae_decoder": warm.vae_decoder}
    for name, sample in measured.items():
        if sample is not None and name in found["components"]:
            share = sample.p50 / warm.total.p50
            found["components"][name]["time"] = {"seconds": sample.p50, "share": share}
    found["benchmark"] = {
        "file": str(path),
        "run": run.name,
        "backend": run.backend,
        "precision": run.precision,
        "threads": run.threads,
        "batch": warm.batch,
        "steps": bench.settings.steps,
        "seconds": warm.total.p50,
    }


def _fits(run: ContenderResult, found: dict[str, Any]) -> bool:
    """Return whether a run is sdrt's, has times, and for an engine set has its backend and precision."""
    same = found["kind"] != "engines" or (run.backend, run.precision) == (found["backend"], found["precision"])
    return run.ours and bool(run.warm) and same
