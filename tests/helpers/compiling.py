"""Compilation in the test's process: one more process a component takes longer than small graphs do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines import build_processes
from sdrt.engines.builders import ComponentJob, builder


def by_its_backend(job: ComponentJob) -> EngineComponent:
    """What the backend of a job makes of it."""
    return builder(job.backend).build(job)


def compile_here(
    patch: pytest.MonkeyPatch, compiled: Callable[[ComponentJob], EngineComponent] = by_its_backend
) -> list[ComponentName]:
    """Have every component compiled in this process, or made by another function; lists which."""
    done: list[ComponentName] = []

    def build_all(jobs: Sequence[ComponentJob], *_: object) -> dict[ComponentName, EngineComponent]:
        done.extend(job.component for job in jobs)
        return {job.component: compiled(job) for job in jobs}

    patch.setattr(build_processes, "build_all", build_all)
    return done
