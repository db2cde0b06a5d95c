"""The command ``sdrt tune``: find the fastest accurate way to run a bundle, for ``--backend auto``."""

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
@click.option(
    "--backend", metavar="NAME,...", help=f"Backends to try, among {', '.join(BACKENDS)}.  [default: all that run here]"
)
@click.option(
    "--precision",
    metavar="NAME,...",
    help=f"Precisions to try, among {', '.join(PRECISIONS)}.  [default: all but int8, which loses visible accuracy]",
)
@click.option(
    "--batch",
    "pictures",
    type=Number(int, 1, MAX_BATCH),
    default=1,
    show_default=True,
    metavar="N",
    help="Pictures per request.",
)
@click.option(
    "--steps",
    type=Number(int, 1, MAX_STEPS),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of denoising steps per request.",
)
@click.option(
    "--rounds",
    type=Number(int, 1, MAX_ROUNDS),
    default=5,
    show_default=True,
    metavar="N",
    help="Runs per candidate.",
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
    """Find the fastest accurate way to run BUNDLE, or a checkpoint's bundle, on this machine.

    Backends and precisions are built and run in turn; then, for the best of them, the loop, a fixed batch and half of
    the threads. Candidates whose results deviate too far from PyTorch's are dropped. The record is kept in the store,
    for this machine and bundle, and --backend auto follows it.
    """
    from sdrt.bench.tune import PRECISIONS as TRIED
    from sdrt.bench.tune import TuneSettings, tune
    from sdrt.prepare.source import Source
    from sdrt.progress import for_terminal

    settings = TuneSettings(
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
        raise NumericError("no candidate is accurate enough", hint="sdrt compare shows the error of each backend")


def lines(record: TuneRecord) -> list[str]:
    """Return a line for each trial, and one for the result."""
    text = [f"{'best' if trial is record.best else '':6}{trial.name}: {trial.why}" for trial in record.trials]
    if record.best is not None:
        text.append(f"--backend auto runs {record.checkpoint} as {record.best.name} on this machine from now on")
    return text
