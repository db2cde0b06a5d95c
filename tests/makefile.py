"""The Makefile's targets, run in the environment that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make(target: str, ready: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a target.

    Args:
        target: Name of the target.
        ready: Stamp of the environment that it needs, so that it is not installed again.
        variables: Variables as NAME=VALUE.
    """
    venv = Path(sys.prefix)
    words = ["make", "--old-file", str(venv / f".{ready}"), target, f"VENV={venv}", *variables]
    # A make that runs the tests passes its own options on.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
