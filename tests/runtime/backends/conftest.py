"""Engine sets for the doubles, over hand-written graphs; made once a test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from tests.doubles.cuda_double.plans import double_set
from tests.models.tiny_bundle import tiny_bundle as write_bundle


@pytest.fixture(scope="session")
def hand_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write the bundle of hand-written graphs; read-only."""
    return write_bundle(tmp_path_factory.mktemp("hand") / "bundle")


@pytest.fixture(scope="session")
def plans(hand_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Write a set of the double's plans for 1 to 4 pictures; read-only."""
    return double_set(hand_bundle, tmp_path_factory.mktemp("double"))


@pytest.fixture
def make_plans(hand_bundle: Bundle, tmp_path: Path) -> Callable[..., EngineSet]:
    """Return a function that writes this test's own set of the double's plans."""

    def make(**options: object) -> EngineSet:
        return double_set(hand_bundle, tmp_path / "double", **options)  # type: ignore[arg-type]

    return make
