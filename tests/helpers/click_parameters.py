"""Options and arguments of all commands."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sdrt.cli import cli


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command of the command line, by its words."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def parameters() -> list[tuple[tuple[str, ...], click.Parameter]]:
    """Return every option and argument of every command."""
    return [(words, parameter) for words, command in commands(cli) for parameter in command.params]
