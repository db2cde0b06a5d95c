"""The base class of builders, and the types that they exchange."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from sdrt.artefacts.engine_set import BackendName, BatchRange, EngineComponent, LayerList, Provider
from sdrt.artefacts.manifest import COMPONENTS, Component, ComponentName, Precision, Record
from sdrt.engines.recipe import Recipe
from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.machine.memory import peak_memory_bytes, reset_peak_memory


class ComponentJob(Record):
    """The build of one component: plain values, since they are sent to another process.

    ``graph`` is the verified ONNX file, ``folder`` the engine set's; the component's files are written to
    ``folder / component``. ``timing_caches`` is the folder of TensorRT's timing caches, if any.
    """

    backend: BackendName
    component: ComponentName
    graph: Path
    spec: Component
    precision: Precision
    batch: BatchRange | None
    options: dict[str, str]
    threads: int
    folder: Path
    recipe: Recipe | None = None
    timing_caches: Path | None = None

    @property
    def source_bytes(self) -> int:
        """Bytes of the graph and its weights."""
        weights = self.graph.with_name(Path(self.spec.weights).name) if self.spec.weights else None
        return sum(path.stat().st_size for path in (self.graph, weights) if path is not None)


class Report(Protocol):
    """The receiver of a build's progress."""

    def percent(self, done: int) -> None:
        """Report the percentage of the component that is done."""

    def note(self, text: str) -> None:
        """Report a line for the user."""


class Mute:
    """A report that discards everything."""

    def percent(self, done: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Compiled:
    """The files of a compiled component.

    Attributes:
        file: Name of the file that the backend opens.
        weights: Name of the weights file beside it, if any.
        layers: Layers of the network, for a backend whose engines do not list them.
    """

    file: str
    weights: str | None = None
    layers: LayerList | None = None


class Builder(ABC):
    """A builder of one backend's engines. A subclass defines ``compile`` and the properties of the backend.

    Args:
        report: Receives the progress of a component.
    """

    backend: ClassVar[BackendName]
    # Increase it when a change of the code changes the engines.
    version: ClassVar[int]
    precisions: ClassVar[tuple[Precision, ...]]
    # Whether components may be built at the same time: not if kernels are timed on one device.
    side_by_side: ClassVar[bool] = True

    def __init__(self, report: Report | None = None) -> None:
        self.report: Report = report or Mute()

    @abstractmethod
    def library_versions(self) -> dict[str, str]:
        """Return the versions of the libraries that decide what is built, by package.

        Raises:
            BackendUnavailableError: One is not installed.
        """

    @abstractmethod
    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """Return the properties of this machine that the machine which opens the engines must share."""

    def also_in_key(self) -> dict[str, str]:
        """Return other properties of this machine that change the engines, though they open without them."""
        return {}

    def components(self, held: frozenset[ComponentName]) -> tuple[ComponentName, ...]:
        """Return the components of a set unless the user names them.

        Args:
            held: Components of the bundle.
        """
        return COMPONENTS

    def recipe(self, requested: Recipe | None, pictures: BatchRange | None) -> Recipe | None:
        """Return the recipe to build by; None for backends without recipes.

        Args:
            requested: Recipe of the user; None is the backend's default.
            pictures: Pictures at once, in place of the recipe's.

        Raises:
            UsageError: The backend has no recipes.
        """
        if requested is not None:
            hint = "recipes are for tensorrt and tensorrt-rtx"
            raise UsageError(f"{self.backend} is built without a recipe", hint=hint)
        return None

    def version_compatible(self, recipe: Recipe | None) -> bool:
        """Return whether later versions of the library, of the same major, open the engines."""
        return False

    def default_precision(self) -> Precision:
        """Return the precision unless the user names one."""
        return "fp32"

    def precision(self, requested: Precision | None, exported: Precision = "fp32") -> Precision:
        """Return the precision to build in.

        Args:
            requested: Precision of the user; None is the backend's default.
            exported: Precision of the bundle.

        Raises:
            BackendUnavailableError: The backend, or this machine, cannot compute in the requested precision.
            UsageError: Only one of the bundle and the request is int8.
        """
        if requested is None:
            requested = "int8" if exported == "int8" else self.default_precision()
        if requested not in self.precisions:
            can = " or ".join(self.precisions)
            raise BackendUnavailableError(
                f"{self.backend} computes in {can}, not in {requested}", hint=f"use --precision {can}"
            )
        if (requested == "int8") != (exported == "int8"):
            hint = "sdrt export --precision int8 writes quantised bundles, --precision fp32 plain ones"
            raise UsageError(f"the bundle is in {exported}: engines in {requested} cannot be built from it", hint=hint)
        return requested

    def component_precision(
        self, component: ComponentName, precision: Precision, exported: Precision = "fp32"
    ) -> Precision:
        """Return the precision of a component that was exported in ``exported``, in a set of ``precision``."""
        return precision

    def options(self, component: ComponentName, provider: Provider = "cpu") -> dict[str, str]:
        """Return the options of a component besides precision and batch.

        Raises:
            UsageError: The backend does not have the provider.
        """
        if provider != "cpu":
            hint = "providers are for --backend onnxruntime"
            raise UsageError(f"{self.backend} does not run on the provider {provider}", hint=hint)
        return {}

    def build(self, job: ComponentJob) -> EngineComponent:
        """Build one component into the job's folder.

        Raises:
            EngineError: The graph does not compile.
            ResourceError: The disk is full.
        """
        folder = job.folder / job.component
        folder.mkdir()
        reset_peak_memory()
        start = time.perf_counter()
        compiled = self.compile(job, folder)
        seconds = time.perf_counter() - start
        return EngineComponent(
            file=f"{job.component}/{compiled.file}",
            weights=f"{job.component}/{compiled.weights}" if compiled.weights else None,
            precision=job.precision,
            inputs=job.spec.inputs,
            outputs=job.spec.outputs,
            batch=job.batch,
            seconds=round(seconds, 3),
            size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            options=job.options,
            peak_memory_bytes=peak_memory_bytes(),
            layers=compiled.layers,
        )

    @abstractmethod
    def compile(self, job: ComponentJob, folder: Path) -> Compiled:
        """Compile the job's graph into the folder; return the files."""
