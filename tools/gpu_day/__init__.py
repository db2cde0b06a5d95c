"""Checks for a first session on an NVIDIA GPU, the most informative ones first: `make gpu-day`."""

from __future__ import annotations

from pathlib import Path

#: Path of the full-size checkpoint that `make sd-v1-random` creates.
FULL_SIZE = Path("build/sd-v1-random")
