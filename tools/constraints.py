"""Pin the newest versions that fit pyproject.toml: ``make constraints`` resolves them and writes constraints.txt.

Nothing is installed: pip only reports what it would install. Run ``make setup check test`` afterwards to test the pins.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.requirements import APART, BUILD, CONSTRAINTS, ROOT, requirement_groups

HEAD = "# What the Makefile installs, pinned. Refresh: make constraints, then make setup check test.\n"


def pins(report: dict[str, Any]) -> str:
    """Return the text of constraints.txt from pip's installation report.

    Local versions (``+cpu``) are removed: they depend on the index that a wheel came from.
    """
    packages = [entry["metadata"] for entry in report["install"] if entry["metadata"]["name"] != "sdrt"]
    lines = {f"{package['name']}=={package['version'].partition('+')[0]}" for package in packages}
    return HEAD + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def resolve(extras: Iterable[str]) -> dict[str, Any]:
    """Return pip's report of installing sdrt with extras into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        words += ["--no-build-isolation", "--report", str(report), f"{ROOT}[{','.join(extras)}]", *BUILD]
        subprocess.run(words, check=True)
        found: dict[str, Any] = json.loads(report.read_text())
    return found


if __name__ == "__main__":
    groups = [name for name in requirement_groups() if name not in ("runtime", "build", *APART)]
    CONSTRAINTS.write_text(pins(resolve(groups)))
    print(CONSTRAINTS)
