from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from sdrt.artefacts.store import Store
from tests.helpers.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle


@pytest.fixture(scope="session")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write the bundle of hand-written graphs; read-only."""
    return tiny_bundle(tmp_path_factory.mktemp("hand-made") / "bundle")


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    """Return a store of the test's own."""
    return Store(tmp_path / "store", lock_timeout_s=60)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[ComponentName]:
    """Compile in this process; return the list of compiled components."""
    return compile_here(monkeypatch)
