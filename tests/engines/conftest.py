from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sdrt.bundle import Bundle, ComponentName
from sdrt.engines import lanes
from sdrt.engines.builders import ComponentJob, builder
from sdrt.engines.engine_set import EngineComponent
from sdrt.engines.store import Store
from sdrt.progress import Progress
from tests.models.tiny_bundle import tiny_bundle


@pytest.fixture(scope="session")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of graphs written by hand; not to be changed."""
    return tiny_bundle(tmp_path_factory.mktemp("hand-made") / "bundle")


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    """A store of the test's own."""
    return Store(tmp_path / "store", lock_timeout_s=60)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[ComponentName]:
    """Compile in this process, which is quicker for small graphs; lists what was compiled."""
    done: list[ComponentName] = []

    def build_all(
        jobs: Sequence[ComponentJob], progress: Progress, memory_bytes: int | None, at_once: int
    ) -> dict[ComponentName, EngineComponent]:
        done.extend(job.component for job in jobs)
        return {job.component: builder(job.backend).build(job) for job in jobs}

    monkeypatch.setattr(lanes, "build_all", build_all)
    return done
