"""Pin the newest versions that fit pyproject.toml: ``make constraints`` resolves all anew and writes constraints.txt.

Nothing is installed: pip says what it would. Then ``make setup check test`` says whether they can be kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.requirements import APART, BUILD, CONSTRAINTS, ROOT, wanted

HEAD = "# What the Makefile installs, pinned. Refresh: make constraints, then make setup check test.\n"


def pins(report: dict[str, Any]) -> str:
    """constraints.txt, from pip's installation report.

    A local version (``+cpu``) says from where a wheel came, which is not for everybody, and is left out.
    """
    packages = [entry["metadata"] for entry in report["install"] if entry["metadata"]["name"] != "sdrt"]
    lines = {f"{package['name']}=={package['version'].partition('+')[0]}" for package in packages}
    return HEAD + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def resolve(extras: Iterable[str]) -> dict[str, Any]:
    """What pip would install of sdrt with extras, into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        words += ["--no-build-isolation", "--report", str(report), f"{ROOT}[{','.join(extras)}]", *BUILD]
        subprocess.run(words, check=True)
        found: dict[str, Any] = json.loads(report.read_text())
    return found


if __name__ == "__main__":
    groups = [name for name in wanted() if name not in ("runtime", "build", *APART)]
    CONSTRAINTS.write_text(pins(resolve(groups)))
    print(CONSTRAINTS)
