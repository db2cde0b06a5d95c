"""The command ``sdrt inspect``: the structure of a checkpoint, a bundle or an engine set."""

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
@click.option("--component", type=click.Choice(get_args(ComponentName)), help="Show only this component.")
@click.option(
    "--depth",
    type=click.IntRange(0, 99),
    metavar="N",
    help=f"Levels of blocks to show.  [default: {DEFAULT_DEPTH}; all with --json]",
)
@revision_option
@variant_option
@click.option(
    "--measure", type=click.IntRange(1, 1000), metavar="N", help="Run BUNDLE N times on the CPU and time each block."
)
@file_option("--benchmark", "JSON file of sdrt bench; adds each component's share of the time.")
@output_file_option("--html", "Write everything to one HTML page.")
@output_file_option("--drawing", "Draw the UNet with its skip connections, as SVG.")
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
    """Show the structure of CHECKPOINT, BUNDLE or ENGINES: blocks, shapes, parameters, FLOPs, layers.

    Blocks of a checkpoint are derived from its configs and checked against its weight files; blocks of a bundle are
    read from its graphs, with their operators. FLOPs are for one sample, two per multiply-add. For engines, layers,
    attentions and profiles are shown if the build recorded them, since a plan cannot be read without a GPU. Nothing
    runs unless --measure is given.
    """
    from sdrt.inspect.examine import add_measured, examine, plain
    from sdrt.inspect.listing import lines

    if drawing is not None and drawing.suffix.lower() != ".svg":
        raise UsageError(f"--drawing: {drawing} is not an .svg", hint="give a file that ends in .svg")
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
    """Write the requested files and return their paths.

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
            raise UsageError("--drawing: there is no UNet to draw", hint=hint)
        write_atomically(drawing, draw(tree, found["checkpoint"]).encode(errors="backslashreplace"))
        wrote.append(drawing)
    if html is not None:
        from sdrt.inspect.page import page

        write_atomically(html, page(found).encode(errors="backslashreplace"))
        wrote.append(html)
    return wrote
