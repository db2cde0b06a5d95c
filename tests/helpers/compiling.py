"""Compilation in the test's process: another process for each component takes longer than small graphs do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines import build_processes
from sdrt.engines.builders import ComponentJob, builder


def by_its_backend(job: ComponentJob) -> EngineComponent:
    """Build a job by its own backend."""
    return builder(job.backend).build(job)


def compile_here(
    patch: pytest.MonkeyPatch, compiled: Callable[[ComponentJob], EngineComponent] = by_its_backend
) -> list[ComponentName]:
    """Compile every component in this process, or by ``compiled``; return the list of compiled names."""
    done: list[ComponentName] = []

    def build_all(jobs: Sequence[ComponentJob], *_: object) -> dict[ComponentName, EngineComponent]:
        done.extend(job.component for job in jobs)
        return {job.component: compiled(job) for job in jobs}

    patch.setattr(build_processes, "build_all", build_all)
    return done
