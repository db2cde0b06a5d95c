"""The ``sdrt`` command line: a click group that imports its commands lazily and prints errors in one line."""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from sdrt.errors import SdrtError
from sdrt.files import system_error
from sdrt.interruption import EXIT_INTERRUPTED, interruptible
from sdrt.streams import check_stdout, guarded_streams
from sdrt.terminal import printable
from sdrt.version import __version__

EXIT_RESOURCE = 6

#: Command -> its line in ``sdrt --help``. Its function is sdrt.commands.<command>.command.
COMMANDS = {
    "denoise": "Generate pictures from a prompt.",
    "export": "Export a checkpoint to an ONNX bundle.",
    "build": "Build engines from a bundle.",
    "compare": "Compare a bundle or engines with the checkpoint in PyTorch.",
    "plot": "Plot what each part of the model does.",
    "bench": "Benchmark engines against other runtimes and the machine's limit.",
    "tune": "Find the fastest accurate settings for this machine, for --backend auto.",
    "store": "Manage stored bundles and engines.",
    "info": "Show how a picture was made.",
    "inspect": "Show the structure of a checkpoint, a bundle or an engine set.",
    "doctor": "Show what this machine can run and what is missing.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"sdrt.commands.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sdrt")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run Stable Diffusion v1 as verified, portable inference engines.

    Exit codes: 0 success, 2 usage error, 3 malformed input, 4 backend not available, 5 numeric error, 6 resource
    error, 7 time limit exceeded, 8 not trusted, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        arguments: Words after ``sdrt``; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with guarded_streams(), interruptible():
        code = _run(words)
    sys.exit(code)


#: Memory that any command needs at least; allocated and freed again as it starts.
LEAST_MEMORY_BYTES = 64 << 20


def _run(words: list[str]) -> int:
    """Run a command and return its exit code; errors are printed in one line."""
    try:
        check_stdout()
        # pydantic and tokenizers, written in Rust, abort the process if memory runs out, so it is tested for here.
        mmap.mmap(-1, LEAST_MEMORY_BYTES).close()
        code = cli.main(words, prog_name="sdrt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SdrtError as error:
        return _end(error, words)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "sdrt"
        _complain(error.format_message().replace("\n", " "), f"see {path} --help")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("sdrt: interrupted", err=True)
        return EXIT_INTERRUPTED
    except ValueError as error:
        # pydantic wraps an interruption that arrives while it writes JSON in an error of its own.
        if "KeyboardInterrupt" not in str(error):
            raise
        click.echo("sdrt: interrupted", err=True)
        return EXIT_INTERRUPTED
    except MemoryError:
        return _out_of_memory()
    except OSError as error:
        if error.errno is None:
            raise
        return _out_of_memory() if error.errno == errno.ENOMEM else _end(system_error(error), words)


def _end(error: SdrtError, words: list[str]) -> int:
    """Print an error, with its traceback if --debug was given, and return its exit code."""
    if "--debug" in words[:1]:
        traceback.print_exc()
    _complain(error.message, error.hint)
    return error.exit_code


def _out_of_memory() -> int:
    _complain("out of memory", "request fewer pictures at once, or give the process more memory")
    return EXIT_RESOURCE


def _complain(message: str, hint: str) -> None:
    """Print an error in one line, even if a file name or a library's message contains control characters."""
    # stderr may be a file on a full disk; the exit code still tells.
    with contextlib.suppress(OSError):
        click.echo(printable(f"sdrt: {message} ({hint})"), err=True)
