"""``sdrt inspect``: what a checkpoint, a bundle or an engine set consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from sdrt.artefacts.manifest import ComponentName
from sdrt.commands.options import (
    file_option,
    json_option,
    output_file_option,
    print_json,
    revision_option,
    variant_option,
)
from sdrt.commands.paths import InputName
from sdrt.errors import UsageError
from sdrt.terminal import printable

DEFAULT_DEPTH = 2


@click.command("inspect")
@click.argument("named", type=InputName(), metavar="CHECKPOINT|BUNDLE|ENGINES")
@click.option("--component", type=click.Choice(get_args(ComponentName)), help="Show this one only.")
@click.option(
    "--depth",
    type=click.IntRange(0, 99),
    metavar="N",
    help=f"Levels of blocks to show.  [default: {DEFAULT_DEPTH}; all in --json]",
)
@revision_option
@variant_option
@click.option(
    "--measure", type=click.IntRange(1, 1000), metavar="N", help="Run a BUNDLE N times and time each block, on the CPU."
)
@file_option("--benchmark", "JSON of sdrt bench, to show each component's share of the time.")
@output_file_option("--html", "Write all of it to one page.")
@output_file_option("--drawing", "Draw the UNet as a U with its skips, as SVG.")
@json_option
def command(
    named: str,
    component: str | None,
    depth: int | None,
    revision: str | None,
    variant: str | None,
    measure: int | None,
    benchmark: Path | None,
    html: Path | None,
    drawing: Path | None,
    as_json: bool,
) -> None:
    """Show what a CHECKPOINT, a BUNDLE or ENGINES consist of: blocks, shapes, parameters, work, layers.

    A checkpoint's blocks come from its configs and are held against its files; a bundle's come from its graphs, with
    the operators that these have. FLOPs are those of one sample: two for each multiply-add. Of engines, layers,
    attentions and profiles are shown where the build stored a list of them, since a plan cannot be read without a GPU.
    Nothing is run but what --measure runs.
    """
    from sdrt.inspect.examine import add_measured, examine, plain
    from sdrt.inspect.listing import lines

    if drawing is not None and drawing.suffix.lower() != ".svg":
        raise UsageError(f"--drawing: {drawing} is not an .svg", hint="name a file that ends in .svg")
    found = examine(named, revision=revision, variant=variant, component=component)
    if benchmark is not None:
        from sdrt.inspect.times import add_times

        add_times(found, benchmark)
    if measure is not None:
        from sdrt.progress import for_terminal

        add_measured(found, measure, for_terminal())
    wrote = _write(found, html, drawing)
    if as_json:
        print_json({**plain(found, depth), "wrote": [str(path) for path in wrote]})
        return
    for line in lines(found, DEFAULT_DEPTH if depth is None else depth):
        click.echo(printable(line))
    for path in wrote:
        click.echo(printable(f"wrote {path}"), err=True)


def _write(found: dict[str, Any], html: Path | None, drawing: Path | None) -> list[Path]:
    """Write what is asked for; gives the files.

    Raises:
        UsageError: There is no UNet to draw.
        ResourceError: A file cannot be written.
    """
    from sdrt.files import write_atomically

    wrote = []
    if drawing is not None:
        from sdrt.inspect.drawing import drawing as draw

        tree = found["components"].get("unet", {}).get("tree")
        if tree is None:
            hint = "give a checkpoint, or a bundle with a unet"
            raise UsageError("--drawing: there is no tree of a unet to draw", hint=hint)
        write_atomically(drawing, draw(tree, found["checkpoint"]).encode(errors="backslashreplace"))
        wrote.append(drawing)
    if html is not None:
        from sdrt.inspect.page import page

        write_atomically(html, page(found).encode(errors="backslashreplace"))
        wrote.append(html)
    return wrote
