"""HTML page of an artefact's contents, which opens from disk, without a network or scripts."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from sdrt.inspect.block import Block, shape_text
from sdrt.inspect.drawing import drawing
from sdrt.inspect.listing import component_lines, count_text, head, input_text, share_text
from sdrt.web_page import web_page

STYLE = Path(__file__).with_suffix(".css")
HEADS = ("block", "kind", "input", "output", "parameters", "GFLOP", "share of FLOPs", "share of time")
#: Number of levels that are unfolded at first.
OPEN = 1


def page(found: dict[str, Any]) -> str:
    """Return the page. All text from the user or from files is escaped."""
    title = f"{found['kind']} {found['checkpoint']}"
    summary = "".join(f"<p>{escape(line)}</p>" for line in head(found))
    tree = found["components"].get("unet", {}).get("tree")
    picture = drawing(tree, found["checkpoint"]) if tree is not None and tree.children else ""
    sections = [summary, picture]
    sections += [_component(name, facts) for name, facts in found["components"].items()]
    return web_page(title, STYLE, sections)


def _component(name: str, facts: dict[str, Any]) -> str:
    """Return the HTML of a component's totals, tensors, layers and tree."""
    heading, *rest = component_lines(name, facts)
    details = "".join(f"<p>{escape(line.strip())}</p>" for line in rest)
    parts = [f"<h2>{escape(heading)}</h2>", f'<div class="soft facts">{details}</div>']
    tree = facts.get("tree")
    if tree is not None and tree.children:
        heads = HEADS if tree.seconds is not None else HEADS[:-1]
        cells = "".join(f"<span{_number(at)}>{text}</span>" for at, text in enumerate(heads))
        wide = "" if tree.seconds is None else " timed"
        rows = "".join(_row(child, tree, 1) for child in tree.children)
        parts.append(
            f'<div class="scroll"><div class="tree{wide}"><div class="row head leaf">{cells}</div>{rows}</div></div>'
        )
    return "".join(parts)


def _row(block: Block, tree: Block, level: int) -> str:
    """Return the HTML of a block's row, with its children folded below it."""
    cells = (
        f'<span class="name">{escape(block.label)}</span>',
        escape(block.kind),
        input_text(block).replace(" -> ", " → "),
        shape_text(block.output),
        count_text(block.parameters),
        f"{block.flops / 1e9:.3f}",
    )
    line = "".join(f"<span{_number(at)}>{cell}</span>" for at, cell in enumerate(cells))
    line += _bar(block.flops, tree.flops)
    if block.seconds is not None and tree.seconds is not None:
        line += _bar(block.seconds, tree.seconds)
    if not block.children:
        return f'<div class="row leaf">{line}</div>'
    below = "".join(_row(child, tree, level + 1) for child in block.children)
    opened = " open" if level <= OPEN else ""
    return f'<details{opened}><summary><div class="row">{line}</div></summary><div class="leaf">{below}</div></details>'


def _bar(part: float, whole: float) -> str:
    """Return the HTML of a share, as a number and a bar."""
    width = 100 * part / whole if whole else 0
    return f'<span class="share">{share_text(part, whole)}<span class="bar" style="width:{width:.2f}%"></span></span>'


def _number(column: int) -> str:
    return ' class="number"' if column in (4, 5) else ""
