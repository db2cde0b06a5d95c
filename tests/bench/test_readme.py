from __future__ import annotations

import re
from pathlib import Path

from benchmarks.write_readme import HERE, page


def test_the_page_is_what_was_measured() -> None:
    """Compare the page with the results; python benchmarks/write_readme.py writes it."""
    assert (HERE / "README.md").read_text() == page()


def test_what_the_page_points_at_is_there() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", page())
    assert len(targets) >= 3
    assert [target for target in targets if not (HERE / Path(target)).exists()] == []
