"""From what a user names to what it consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.manifest import MANIFEST
from sdrt.errors import UsageError
from sdrt.inspect.block import Block, timed
from sdrt.inspect.bundle import examine as examine_folder
from sdrt.progress import Progress


def examine(
    named: str, *, revision: str | None = None, variant: str | None = None, component: str | None = None
) -> dict[str, Any]:
    """What a checkpoint, a bundle or an engine set consists of.

    The result is plain values, but for ``tree`` of each component, a `Block` or None. Nothing is opened to be run, and
    no weights are read but to hash a checkpoint's.

    Args:
        named: A folder with a bundle or an engine set, or what names a checkpoint.
        revision: Of a checkpoint from the Hub.
        variant: Of a checkpoint's weights.
        component: The only one wanted.

    Raises:
        SdrtError: It is not there, malformed, or holds no such component.
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
            hint = f"it has {', '.join(found['components'])}"
            raise UsageError(f"--component: {named} has no {component}", hint=hint)
        found["components"] = {component: found["components"][component]}
    return found


def add_measured(found: dict[str, Any], runs: int, progress: Progress) -> None:
    """Run each component of a bundle that has a tree, and put seconds into its blocks.

    Args:
        found: What `examine` gave.
        runs: How often each is run.
        progress: Told of the runs.

    Raises:
        UsageError: It is no bundle.
        SdrtError: The bundle cannot be run: see `sdrt.inspect.measure.measure`.
    """
    if found["kind"] != "bundle":
        hint = "give a bundle; for engines: sdrt bench, then --benchmark"
        raise UsageError(f"--measure: {found['path']} is no bundle", hint=hint)
    from sdrt.artefacts.bundle import Bundle
    from sdrt.inspect.measure import measure

    bundle = Bundle.open(Path(found["path"]))
    for name, facts in found["components"].items():
        if facts["tree"] is not None:
            facts["tree"] = timed(facts["tree"], measure(bundle, name, runs, progress))


def plain(found: dict[str, Any], depth: int | None = None) -> dict[str, Any]:
    """What `examine` gave as JSON has it; trees down to level ``depth``."""
    components = {}
    for name, facts in found["components"].items():
        tree = facts.get("tree")
        components[name] = {**facts, "tree": tree.plain(depth)} if isinstance(tree, Block) else facts
    return {**found, "components": components}
