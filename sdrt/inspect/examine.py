"""Contents of a checkpoint, a bundle or an engine set that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.manifest import MANIFEST
from sdrt.errors import UsageError
from sdrt.inspect.block import Block, with_seconds
from sdrt.inspect.bundle import examine as examine_folder
from sdrt.progress import Progress


def examine(
    named: str, *, revision: str | None = None, variant: str | None = None, component: str | None = None
) -> dict[str, Any]:
    """Return the contents of a checkpoint, a bundle or an engine set.

    The result consists of JSON values, except ``tree`` of each component, a `Block` or None. Nothing is run, and
    weights are read only to hash those of a checkpoint.

    Args:
        named: Folder of a bundle or an engine set, or name, path or URL of a checkpoint.
        revision: Revision of a checkpoint from the Hub.
        variant: Variant of a checkpoint's weights.
        component: Name of the only component to return; None returns all.

    Raises:
        SdrtError: The artefact is missing or malformed, or has no such component.
    """
    if (Path(named) / MANIFEST).exists():
        if revision is not None:
            raise UsageError("--revision is for checkpoints from the Hub", hint="leave it out")
        if variant is not None:
            raise UsageError("--variant is for checkpoints", hint="leave it out")
        found = examine_folder(Path(named))
    else:
        from sdrt.checkpoint import open_checkpoint
        from sdrt.inspect.checkpoint import examine_checkpoint

        found = examine_checkpoint(open_checkpoint(named, revision=revision, variant=variant))
    if component is not None:
        if component not in found["components"]:
            hint = f"choose among {', '.join(found['components'])}"
            raise UsageError(f"--component: {named} has no {component}", hint=hint)
        found["components"] = {component: found["components"][component]}
    return found


def add_measured(found: dict[str, Any], runs: int, progress: Progress) -> None:
    """Measure the time of each block of a bundle's components, and add it to their trees, in place.

    Args:
        found: Result of `examine`.
        runs: Number of timed runs of each component.
        progress: Progress callback.

    Raises:
        UsageError: ``found`` is not a bundle.
        SdrtError: The bundle cannot be run; see `sdrt.inspect.measure.measure`.
    """
    if found["kind"] != "bundle":
        hint = "give a bundle; for engines: sdrt bench, then --benchmark"
        raise UsageError(f"--measure: {found['path']} is not a bundle", hint=hint)
    from sdrt.artefacts.bundle import Bundle
    from sdrt.inspect.measure import measure

    bundle = Bundle.open(Path(found["path"]))
    for name, facts in found["components"].items():
        if facts["tree"] is not None:
            facts["tree"] = with_seconds(facts["tree"], measure(bundle, name, runs, progress))


def plain(found: dict[str, Any], depth: int | None = None) -> dict[str, Any]:
    """Convert a result of `examine` to JSON values, with trees down to level ``depth``."""
    components = {}
    for name, facts in found["components"].items():
        tree = facts.get("tree")
        components[name] = {**facts, "tree": tree.plain(depth)} if isinstance(tree, Block) else facts
    return {**found, "components": components}
