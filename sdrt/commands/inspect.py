"""``sdrt inspect``: what a bundle or an engine set consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdrt.commands.options import json_option, print_json, size_text


@click.command("inspect")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="ENGINES|BUNDLE")
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Show the layers of ENGINES or BUNDLE by kind and precision, its attentions, profiles and sizes.

    A bundle's come from its graphs; those of TensorRT's plans from the list that the build stored beside them, since a
    plan cannot be read without a GPU. Nothing is opened to be run.
    """
    from sdrt.inspect.layers import examine

    found = examine(folder)
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        click.echo(line)


def lines(found: dict[str, Any]) -> list[str]:
    """The facts as people read them."""
    what = f"{found['backend']} engines" if found["kind"] == "engines" else f"bundle, opset {found['opset']}"
    text = [f"{what} of {found['checkpoint']}, {found['precision']}"]
    if found.get("host"):
        text.append("for " + ", ".join(f"{key} {value}" for key, value in found["host"].items()))
    for name, component in found["components"].items():
        text += ["", f"{name}: {component['precision']}, {size_text(component['size_bytes'])}", *_shape(component)]
        text += _layers(component)
    return text


def _shape(component: dict[str, Any]) -> list[str]:
    tensors = [
        f"  {arrow} {tensor:24}{what}"
        for arrow, group in (("<-", "inputs"), ("->", "outputs"))
        for tensor, what in component[group].items()
    ]
    profile = component.get("profile")
    if profile:
        tensors.append(f"  profile: batch {profile['min']} to {profile['max']}, fastest at {profile['opt']}")
    return tensors


def _layers(component: dict[str, Any]) -> list[str]:
    if component["layers"] is None:
        return ["  layers: the backend's own; it keeps no list"]
    kinds = [
        f"  {kind:24}{', '.join(f'{count} {precision}' for precision, count in counts.items())}"
        for kind, counts in component["layers"].items()
    ]
    return kinds + _attentions(component["attentions"])


def _attentions(attentions: list[dict[str, Any]]) -> list[str]:
    if not attentions:
        return []
    if "fused" not in attentions[0]:
        return [f"  attentions: {len(attentions)}"]
    fused = sum(attention["fused"] for attention in attentions)
    text = [f"  attentions: {len(attentions)}, {fused} of them fused"]
    for attention in attentions:
        if not attention["fused"]:
            shape = (
                f"{attention['heads']} heads of {attention['head_size']}, {attention['queries']}x{attention['keys']}"
            )
            text.append(f"    decomposed: {attention['name']} ({shape})")
    return text
