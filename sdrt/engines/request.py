"""The request of a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdrt.artefacts.engine_set import BackendName, BatchRange, Provider
from sdrt.artefacts.manifest import ComponentName, Precision

if TYPE_CHECKING:
    from sdrt.engines.recipe import Recipe


@dataclass(frozen=True)
class BuildRequest:
    """The engines that a build is to make.

    Attributes:
        backend: The backend's name.
        precision: Precision that the engines compute in; None is the backend's default on this machine.
        components: Components to build; None is the backend's default.
        threads: Number of CPU threads of the build; None is all that this process may use.
        batch: Pictures at once; None leaves the batch free, or is the recipe's.
        recipe: TensorRT's build settings; None is the default recipe. Other backends have no recipes.
        provider: ONNX Runtime's execution provider; other backends accept only cpu.
    """

    backend: BackendName
    precision: Precision | None = None
    components: tuple[ComponentName, ...] | None = None
    threads: int | None = None
    batch: BatchRange | None = None
    recipe: Recipe | None = None
    provider: Provider = "cpu"
