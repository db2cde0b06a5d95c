"""``sdrt tune``: the fastest accurate way to run a bundle here, for ``--backend auto`` to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdrt.commands.bench import MAX_ROUNDS, names
from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    Number,
    checkpoint_option,
    json_option,
    print_json,
    revision_option,
    store_option,
    threads_option,
    variant_option,
)
from sdrt.commands.paths import InputPath
from sdrt.errors import NumericError
from sdrt.limits import MAX_STEPS

if TYPE_CHECKING:
    from sdrt.artefacts.tuned import TuneRecord

MAX_BATCH = 16


@click.command("tune")
@click.argument("bundle", required=False, type=InputPath(folder=True))
@checkpoint_option
@revision_option
@variant_option
@click.option("--backend", metavar="NAMES", help=f"Try only these of {', '.join(BACKENDS)}.  [default: what runs here]")
@click.option(
    "--precision",
    metavar="NAMES",
    help=f"Try only these of {', '.join(PRECISIONS)}.  [default: all but int8, which costs accuracy that shows]",
)
@click.option(
    "--batch",
    "pictures",
    type=Number(int, 1, MAX_BATCH),
    default=1,
    show_default=True,
    metavar="N",
    help="Tune for requests of so many pictures.",
)
@click.option(
    "--steps", type=Number(int, 1, MAX_STEPS), default=10, show_default=True, metavar="N", help="Steps of a request."
)
@click.option(
    "--rounds", type=Number(int, 1, MAX_ROUNDS), default=5, show_default=True, metavar="N", help="Runs of each way."
)
@store_option
@threads_option
@json_option
def command(
    bundle: Path | None,
    checkpoint: str | None,
    revision: str | None,
    variant: str | None,
    backend: str | None,
    precision: str | None,
    pictures: int,
    steps: int,
    rounds: int,
    store: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the fastest accurate way to run BUNDLE (or a checkpoint's bundle) on this machine, and keep it.

    Backends and precisions are built and run in turn; then, of the best, the loop, a fixed batch, and half of the
    threads. What does not draw what PyTorch draws drops out. The record lies in the store, for this machine and bundle,
    and --backend auto follows it wherever the bundle is run.
    """
    from sdrt.bench.tune import PRECISIONS as TRIED
    from sdrt.bench.tune import Settings, tune
    from sdrt.prepare.source import Source
    from sdrt.progress import for_terminal

    settings = Settings(
        pictures,
        steps,
        rounds,
        names("--backend", backend, BACKENDS) if backend else BACKENDS,  # type: ignore[arg-type]
        names("--precision", precision, PRECISIONS) if precision else TRIED,  # type: ignore[arg-type]
        threads,
    )
    record = tune(Source(checkpoint, revision, bundle, variant=variant), settings, store, for_terminal())
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        for line in lines(record):
            click.echo(line)
    if record.best is None:
        raise NumericError("nothing that was tried is accurate", hint="sdrt compare says how far each is off")


def lines(record: TuneRecord) -> list[str]:
    """Every trial in a line, and what follows."""
    text = [f"{'best' if trial is record.best else '':6}{trial.name}: {trial.why}" for trial in record.trials]
    if record.best is not None:
        text.append(f"--backend auto runs {record.checkpoint} as {record.best.name} on this machine from now on")
    return text
