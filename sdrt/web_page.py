"""Web pages that open from disk, without a network or scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_suffix(".html")


def web_page(title: str, style: Path, sections: Iterable[str]) -> str:
    """Return an HTML page whose content security policy allows nothing but its own content.

    Args:
        title: Plain text; it is escaped here.
        style: A CSS file that follows the style of all pages.
        sections: HTML in which text of users and files is already escaped; empty ones are left out.
    """
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), style=style.read_text(encoding="utf-8"), sections="\n".join(filter(None, sections))
    )
