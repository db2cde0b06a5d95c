"""The command ``sdrt store``: list, verify, import and remove stored bundles and engine sets."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sdrt.commands.build import facts
from sdrt.commands.options import json_option, print_json, print_text, store_option
from sdrt.commands.paths import InputPath
from sdrt.errors import ResourceError, TrustError
from sdrt.terminal import printable, size_text

DAY_S = 86400


@click.group("store")
def command() -> None:
    """Manage stored bundles and engine sets."""


@command.command("list")
@store_option
@json_option
def list_entries(store: Path | None, as_json: bool) -> None:
    """List stored bundles and engine sets."""
    from sdrt.artefacts.store import Store

    entries = Store.at(store).entries()
    if as_json:
        print_json([{**vars(entry), "path": str(entry.path)} for entry in entries])
        return
    for entry in entries:
        days = (time.time() - entry.last_used_s) / DAY_S
        kind = " ".join(filter(None, (entry.kind, entry.backend, entry.precision, entry.checkpoint)))
        size = size_text(entry.size_bytes)
        click.echo(printable(f"{kind:44} {size:>10}  used {days:.0f} days ago  {entry.path}"))


@command.command("verify")
@store_option
@json_option
def verify(store: Path | None, as_json: bool) -> None:
    """Check every stored file against its digest; exit with code 8 if one does not match."""
    from sdrt.artefacts.store import Store

    problems = Store.at(store).verify()
    broken = {path: error for path, error in problems.items() if error is not None}
    if as_json:
        print_json({str(path): error.message if error else None for path, error in problems.items()})
    else:
        for path, error in problems.items():
            click.echo(printable(f"{'ok' if error is None else error.message}  {path}"))
    unread = [error for error in broken.values() if isinstance(error, ResourceError)]
    if unread and len(unread) == len(broken):
        raise ResourceError(f"{len(broken)} of {len(problems)} stored artefacts cannot be read", hint=unread[0].hint)
    if broken:
        hint = "the next build moves it to quarantine and builds it again"
        raise TrustError(f"{len(broken)} of {len(problems)} stored artefacts are damaged", hint=hint)


@command.command("import")
@click.argument("folder", type=InputPath(exists=True, folder=True))
@click.option(
    "--trust", required=True, metavar="DIGEST", help="SHA-256 of its manifest.json, as printed by sdrt build --out."
)
@store_option
@json_option
def import_engines(folder: Path, trust: str, store: Path | None, as_json: bool) -> None:
    """Copy an engine set from elsewhere into the store, after checking every digest."""
    from sdrt.artefacts.store import Store

    engines = Store.at(store).import_engines(folder, trust=trust)
    if as_json:
        print_json(facts(engines))
    else:
        print_text(str(engines.path))


@command.command("gc")
@click.option(
    "--unused-days",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Remove entries that were not used for this many days.",
)
@store_option
@json_option
def gc(unused_days: float, store: Path | None, as_json: bool) -> None:
    """Remove entries that were not used for a while. Entries in use are kept."""
    from sdrt.artefacts.store import Store
    from sdrt.progress import for_terminal

    user_store = Store.at(store)
    removed = user_store.gc(unused_for_s=unused_days * DAY_S, progress=for_terminal())
    if as_json:
        print_json([{"path": str(entry.path), "size_bytes": entry.size_bytes} for entry in removed])
        return
    for entry in removed:
        print_text(str(entry.path))
    click.echo(f"{size_text(sum(entry.size_bytes for entry in removed))} freed", err=True)
