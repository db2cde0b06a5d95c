"""What a builder of engines has to supply."""

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
    """The building of one component: plain values, since it travels to another process.

    ``graph`` is the verified ONNX file, ``folder`` where the engine set is put together; the component's files go into
    ``folder / component``. ``timing_caches`` is where TensorRT keeps what it measured, if anywhere.
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
    """Where a builder says how far it is."""

    def percent(self, done: int) -> None:
        """Say that so much of the component is done, in all."""

    def note(self, text: str) -> None:
        """Say one line."""


class Mute:
    """Says nothing."""

    def percent(self, done: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Compiled:
    """What compiling left in a component's folder.

    Attributes:
        file: Name of the file that the backend opens.
        weights: Name of the weights beside it.
        layers: What was compiled, for a backend whose engines cannot be asked.
    """

    file: str
    weights: str | None = None
    layers: LayerList | None = None


class Builder(ABC):
    """Builds one backend's engines. A subclass supplies the facts and ``compile``.

    Args:
        report: Told how far a component is.
    """

    backend: ClassVar[BackendName]
    # Count up when a change of this code changes what it makes from the same input.
    version: ClassVar[int]
    precisions: ClassVar[tuple[Precision, ...]]
    # Whether components may be built at the same time: not where they are timed on one device.
    side_by_side: ClassVar[bool] = True

    def __init__(self, report: Report | None = None) -> None:
        self.report: Report = report or Mute()

    @abstractmethod
    def library_versions(self) -> dict[str, str]:
        """The installed libraries that decide what is built, by package.

        Raises:
            BackendUnavailableError: One is not installed.
        """

    @abstractmethod
    def must_match(self, recipe: Recipe | None = None) -> dict[str, str]:
        """What of this machine goes into the engines, and so must be there where they are opened."""

    def also_in_key(self) -> dict[str, str]:
        """What else of this machine decides how the engines come out, though they open where it differs."""
        return {}

    def components(self, held: frozenset[ComponentName]) -> tuple[ComponentName, ...]:
        """What a set holds where the user leaves it open.

        Args:
            held: What the bundle holds.
        """
        return COMPONENTS

    def recipe(self, asked: Recipe | None, pictures: BatchRange | None) -> Recipe | None:
        """The recipe to build by.

        Args:
            asked: The user's; None is the backend's default.
            pictures: The user's number of pictures, in place of the recipe's.

        Raises:
            UsageError: The backend has no recipes.
        """
        if asked is not None:
            hint = "recipes are for tensorrt and tensorrt-rtx"
            raise UsageError(f"{self.backend} is built without a recipe", hint=hint)
        return None

    def version_compatible(self, recipe: Recipe | None) -> bool:
        """Whether later versions of the library, of the same major, open what is built."""
        return False

    def default_precision(self) -> Precision:
        """What to build where the user leaves it open."""
        return "fp32"

    def precision(self, asked: Precision | None, exported: Precision = "fp32") -> Precision:
        """The precision to build in.

        Args:
            asked: By the user.
            exported: The bundle's.

        Raises:
            BackendUnavailableError: The backend cannot compute in the one asked for, at all or on this machine.
            UsageError: The bundle is quantised and something else is asked for, or the other way round.
        """
        if asked is None:
            asked = "int8" if exported == "int8" else self.default_precision()
        if asked not in self.precisions:
            can = " and ".join(self.precisions)
            raise BackendUnavailableError(f"{self.backend} computes in {can}, not in {asked}", hint=f"ask for {can}")
        if (asked == "int8") != (exported == "int8"):
            hint = "sdrt export --precision int8 writes quantised bundles, --precision fp32 plain ones"
            raise UsageError(f"the bundle is in {exported}: engines in {asked} cannot be built from it", hint=hint)
        return asked

    def component_precision(
        self, component: ComponentName, precision: Precision, exported: Precision = "fp32"
    ) -> Precision:
        """How one component, exported in some precision, computes in a set of this precision."""
        return precision

    def options(self, component: ComponentName, provider: Provider = "cpu") -> dict[str, str]:
        """What the component is built with besides its precision and batch.

        Raises:
            UsageError: The backend takes no such provider.
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
        """Compile the job's graph into the folder."""
