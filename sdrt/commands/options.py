"""Options that several commands share, and functions that print results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sdrt.artefacts.manifest import MAX_TOKEN_MERGING
from sdrt.commands.paths import InputName, InputPath, OutputFile, OutputFolder

Command = TypeVar("Command", bound=Callable[..., Any])

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
#: DEL and C1 control characters, which JSON does not escape.
CONTROLS_OF_JSON = re.compile("[\x7f-\x9f]")
BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def folder_option(name: str, text: str) -> Callable[[Command], Command]:
    """Build an option that takes a folder to read."""
    return click.option(name, type=InputPath(folder=True), metavar="DIR", help=text)


def file_option(name: str, text: str, *names: str) -> Callable[[Command], Command]:
    """Build an option that takes a file to read."""
    return click.option(name, *names, type=InputPath(), metavar="FILE", help=text)


def output_folder_option(name: str, text: str) -> Callable[[Command], Command]:
    """Build an option that takes a folder to write."""
    return click.option(name, type=OutputFolder(), metavar="DIR", help=text)


def output_file_option(name: str, text: str) -> Callable[[Command], Command]:
    """Build an option that takes a file to write."""
    return click.option(name, type=OutputFile(), metavar="FILE", help=text)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A click parameter type: a number within a range, which the error message states."""

    def __init__(self, kind: type[int] | type[float], least: float, most: float) -> None:
        self.name = "whole number" if kind is int else "number"
        self._kind, self._least, self._most = kind, least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return the number; fail if it is not one or not in the range."""
        try:
            number = self._kind(value)
        except ValueError:
            number = math.nan
        if not self._least <= number <= self._most:
            self.fail(f"{str(value)[:40]!r} is not a {self.name} from {self._least} to {self._most}.", param, ctx)
        return number


checkpoint_option = click.option(
    "--checkpoint",
    type=InputName(),
    metavar="C",
    help="Checkpoint: a folder, a .safetensors file, a Hub id or demo.  [default: demo]",
)
revision_option = click.option("--revision", metavar="R", help="Branch, tag or commit of the Hub repository.")
variant_option = click.option(
    "--variant", metavar="NAME", help="Variant of the weight files, such as bf16 or non_ema.  [default: none]"
)
store_option = folder_option("--store", "Folder of stored bundles and engines.  [default: in the user's cache]")
provider_option = click.option(
    "--provider",
    type=click.Choice(("cpu", "cuda", "tensorrt")),
    help="Execution provider of onnxruntime.  [default: cpu]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Number of CPU threads.  [default: one per CPU]"
)


def backend_option(names: tuple[str, ...], default: str) -> Callable[[Command], Command]:
    """Build the --backend option of a command."""
    return click.option(
        "--backend", type=click.Choice(names), default=default, show_default=True, help="Backend to use."
    )


def precision_option(names: tuple[str, ...]) -> Callable[[Command], Command]:
    """Build the --precision option of a command, whose default depends on the backend."""
    return click.option(
        "--precision", type=click.Choice(names), help="Precision of the engines.  [default: the backend's]"
    )


token_merging_option = click.option(
    "--token-merging",
    type=Number(float, 0, MAX_TOKEN_MERGING),
    metavar="RATIO",
    help="Share of tokens to merge before the UNet's largest self-attention, up to 0.75; faster, less exact.",
)


def print_json(value: Any) -> None:
    """Print a JSON document on stdout, in UTF-8.

    Bytes of paths that are not UTF-8 are escaped, and so are control characters that terminals would interpret.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    text = CONTROLS_OF_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    click.echo(text.encode(errors="backslashreplace"))


def print_text(text: str) -> None:
    """Print a line on stdout; bytes of paths that are not UTF-8 are written unchanged."""
    click.echo(text.encode(errors="surrogateescape"))
