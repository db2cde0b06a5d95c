"""Write docs/cli.md from the commands' own help, so that the two cannot differ. ``make docs`` runs it."""

from __future__ import annotations

from pathlib import Path

import click

from sdrt.cli import COMMANDS, cli

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# The command line

Written by `make docs` from the commands' help; edit that, not this page.
"""


def sections(command: click.Command, path: str) -> list[str]:
    """The command's help and, below it, its subcommands'."""
    context = click.Context(command, info_name=path, terminal_width=100, max_content_width=100)
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
