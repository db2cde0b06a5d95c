"""Write docs/cli.md from the commands' own help, and draw v1's UNet from its config. ``make docs`` runs it."""

from __future__ import annotations

from pathlib import Path

import click

from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.checkpoint.configs import read_text_encoder, read_unet
from sdrt.cli import COMMANDS, cli
from sdrt.inspect.drawing import drawing
from sdrt.inspect.unet import unet_tree

PAGE = Path(__file__).parent / "cli.md"
DRAWING = Path(__file__).parent / "images" / "sd-v1-unet.svg"
HEAD = """# The command line

Written by `make docs` from the commands' help; edit that, not this page.
"""


def sections(command: click.Command, path: str) -> list[str]:
    """The command's help and, below it, its subcommands'."""
    # A command keeps the names of its help option from the first context it meets.
    settings = {**cli.context_settings, "max_content_width": 100}
    context = click.Context(command, info_name=path, terminal_width=100, **settings)
    parts = [f"## {path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        names = COMMANDS if command is cli else command.commands
        for name in names:
            found = command.get_command(context, name)
            if found is None:
                raise LookupError(f"{path} {name} is listed but not there")
            parts += sections(found, f"{path} {name}")
    return parts


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *sections(cli, "sdrt")])


def unet() -> str:
    """The UNet of Stable Diffusion v1 as a U."""
    text_encoder = read_text_encoder(SD_V1)
    config = read_unet(SD_V1, text_encoder["hidden_size"])
    return drawing(unet_tree(config, text_encoder["max_position_embeddings"]), "Stable Diffusion v1")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
    DRAWING.write_text(unet(), encoding="utf-8")
    print(DRAWING)
