"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
BACKENDS = ("onnxruntime", "openvino")


def folder_option(name: str, text: str) -> Callable[[Command], Command]:
    """An option that takes a folder."""
    return click.option(name, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help=text)


checkpoint_option = click.option(
    "--checkpoint", default=None, metavar="C", help="A folder, a .safetensors file, a Hub id, or demo.  [default: demo]"
)
revision_option = click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub id.")
store_option = folder_option("--store", "Where bundles and engines are kept.  [default: the user's cache]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON on stdout.")
threads_option = click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads to compute with.")


def backend_option(names: tuple[str, ...], default: str) -> Callable[[Command], Command]:
    """The --backend option of a command."""
    return click.option("--backend", type=click.Choice(names), default=default, show_default=True, help="What runs it.")


def precision_option(names: tuple[str, ...]) -> Callable[[Command], Command]:
    """The --precision option of a command; its default is said by the command."""
    return click.option("--precision", type=click.Choice(names), help="How engines compute.  [default: the backend's]")


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 12.3 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
