"""What a builder of engines has to supply."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from sdrt.bundle import Component, ComponentName, Precision, Record
from sdrt.engines.engine_set import BackendName, BatchRange, EngineComponent
from sdrt.errors import BackendUnavailableError


class ComponentJob(Record):
    """The building of one component: plain values, since it travels to another process.

    ``graph`` is the verified ONNX file, ``folder`` where the engine set is put together; the component's files go into
    ``folder / component``.
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


class Builder(ABC):
    """Builds one backend's engines. A subclass supplies the facts and ``compile``."""

    backend: ClassVar[BackendName]
    # Count up when a change of this code changes what it makes from the same input.
    version: ClassVar[int]
    precisions: ClassVar[tuple[Precision, ...]]

    @abstractmethod
    def library_versions(self) -> dict[str, str]:
        """The installed libraries that decide what is built, by package.

        Raises:
            BackendUnavailableError: One is not installed.
        """

    @abstractmethod
    def host(self) -> dict[str, str]:
        """What of this machine goes into the engines, and so must be there where they are opened."""

    def default_precision(self) -> Precision:
        """What to build where the user leaves it open."""
        return "fp32"

    def precision(self, asked: Precision | None) -> Precision:
        """The precision to build in.

        Raises:
            BackendUnavailableError: The backend cannot compute in the one asked for, at all or on this machine.
        """
        if asked is None:
            return self.default_precision()
        if asked not in self.precisions:
            can = " and ".join(self.precisions)
            raise BackendUnavailableError(f"{self.backend} computes in {can}, not in {asked}", hint=f"ask for {can}")
        return asked

    def component_precision(self, component: ComponentName, precision: Precision) -> Precision:
        """How one component computes in a set of this precision."""
        return precision

    def options(self, component: ComponentName) -> dict[str, str]:
        """What the component is built with besides its precision and batch."""
        return {}

    def build(self, job: ComponentJob) -> EngineComponent:
        """Build one component into the job's folder.

        Raises:
            EngineError: The graph does not compile.
            ResourceError: The disk is full.
        """
        folder = job.folder / job.component
        folder.mkdir()
        start = time.perf_counter()
        file, weights = self.compile(job, folder)
        seconds = time.perf_counter() - start
        return EngineComponent(
            file=f"{job.component}/{file}",
            weights=f"{job.component}/{weights}" if weights else None,
            precision=job.precision,
            inputs=job.spec.inputs,
            outputs=job.spec.outputs,
            batch=job.batch,
            seconds=round(seconds, 3),
            size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            options=job.options,
        )

    @abstractmethod
    def compile(self, job: ComponentJob, folder: Path) -> tuple[str, str | None]:
        """Compile the job's graph into the folder.

        Returns:
            The name of the file that the backend opens, and of the weights beside it if there are any.
        """
