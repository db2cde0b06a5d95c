"""sdrt: Stable Diffusion v1 checkpoints as verified, portable inference engines.

Example::

    from sdrt import Pipeline

    pipe = Pipeline.load("demo")
    pipe("a red circle", seed=0).images[0].save("circle.png")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sdrt.version import __version__

if TYPE_CHECKING:
    from sdrt.pipeline import Pipeline
    from sdrt.runtime.result import Result

__all__ = ["Pipeline", "Result", "__version__"]

# ONNX Runtime reads this on import; since 1.29 it sends telemetry by default (docs/decisions/0079).
# Set ORT_DISABLE_TELEMETRY=0 to keep it on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import the pipeline on first use, so that ``import sdrt`` stays quick."""
    if name == "Pipeline":
        from sdrt.pipeline import Pipeline

        return Pipeline
    if name == "Result":
        from sdrt.runtime.result import Result

        return Result
    raise AttributeError(f"module 'sdrt' has no attribute {name!r}")
