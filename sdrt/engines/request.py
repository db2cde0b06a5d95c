"""What a user asks a build for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdrt.artefacts.engine_set import BackendName, BatchRange, Provider
from sdrt.artefacts.manifest import ComponentName, Precision

if TYPE_CHECKING:
    from sdrt.engines.recipe import Recipe


@dataclass(frozen=True)
class BuildRequest:
    """Which engines to build.

    Attributes:
        backend: The backend's name.
        precision: How the engines compute; None is the backend's choice on this machine.
        components: What to build; None is what the backend's sets hold.
        threads: Threads that building may take; None is all that this process may use.
        batch: Pictures at once; None leaves the batch free where the backend can, and is the recipe's elsewhere.
        recipe: How TensorRT builds; None is its default recipe. Other backends take none.
        provider: What ONNX Runtime computes with; other backends take none but cpu.
    """

    backend: BackendName
    precision: Precision | None = None
    components: tuple[ComponentName, ...] | None = None
    threads: int | None = None
    batch: BatchRange | None = None
    recipe: Recipe | None = None
    provider: Provider = "cpu"
