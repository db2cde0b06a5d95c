"""What a first session on an NVIDIA GPU should try, in order of what it teaches: `make gpu-day`."""

from __future__ import annotations

from pathlib import Path

#: Where `make sd-v1-random` puts the full-size checkpoint.
FULL_SIZE = Path("build/sd-v1-random")
