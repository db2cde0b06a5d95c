from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.compare import report
from sdrt.inspect import page
from sdrt.web_page import web_page


@pytest.mark.parametrize("style", [report.STYLE, page.STYLE])
def test_a_page_loads_nothing_and_names_are_text(style: Path) -> None:
    made = web_page('<script>"$title"', style, ["<p>first $style</p>", "", "<p>second</p>"])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in made
    assert made.count("&lt;script&gt;&quot;$title&quot;") == 2
    assert "<script" not in made
    assert "<p>first $style</p>\n<p>second</p>\n</body>" in made
    assert style.read_text() in made
    # Its own colours come after the shared ones, in light and in dark.
    assert made.index("--ink") < made.index(style.read_text().split("{")[1].split(":")[0].strip())
    assert "url(" not in made
    assert "@import" not in made
