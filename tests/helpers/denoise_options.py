"""Options of sdrt denoise, without a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.commands.denoise_options import DenoiseOptions


def options(**given: Any) -> DenoiseOptions:
    """Return the command's options at their defaults, with some given."""
    names = DenoiseOptions.__dataclass_fields__
    defaults = {**dict.fromkeys(names), "out": Path("a.png"), "build": True, "loop": "auto", "as_json": False}
    return DenoiseOptions(**{**defaults, "backend": "auto", "repeat": Path("b.png"), **given})
