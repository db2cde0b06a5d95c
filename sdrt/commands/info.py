"""The command ``sdrt info``: how a picture was made."""

from __future__ import annotations

from pathlib import Path

import click

from sdrt.commands.options import json_option, print_json
from sdrt.commands.paths import InputPath
from sdrt.terminal import printable


@click.command("info")
@click.argument("picture", type=InputPath(exists=True, folder=False))
@json_option
def command(picture: Path, as_json: bool) -> None:
    """Show how PICTURE was made.

    PICTURE is a PNG that sdrt wrote; sdrt denoise --from PICTURE repeats it.
    """
    from sdrt.runtime.picture_record import read_record

    record = read_record(picture)
    if as_json:
        print_json(record)
        return
    for name, value in record.items():
        text = " ".join(map(str, value.values())) if isinstance(value, dict) else value
        if name not in ("batch", "batch_index"):
            click.echo(printable(f"{name:22}{text}"))
