"""Web pages that open from disk, without a network or scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_suffix(".html")


def web_page(title: str, style: Path, sections: Iterable[str]) -> str:
    """A page that may load nothing but what stands in it.

    Args:
        title: Text; it is escaped here.
        style: A file of CSS that stands after what all pages share.
        sections: HTML, in which everything that a user or a file named is escaped; empty ones are left out.
    """
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), style=style.read_text(encoding="utf-8"), sections="\n".join(filter(None, sections))
    )
