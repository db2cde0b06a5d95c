"""Fixtures of the fault tests: a server of forks, and a bundle that draws pictures at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from tests.doubles.cuda_double.plans import SD_V1, word_tokenizer
from tests.faults.actions import rights_dropped
from tests.faults.killer import Killer
from tests.models.tiny_bundle import tiny_bundle as hand_made_bundle

RUNTIME = (
    "sdrt.cli",
    "sdrt.commands.build",
    "sdrt.commands.denoise",
    "sdrt.commands.store",
    "sdrt.engines.build",
    "sdrt.prepare.engines",
    "sdrt.pipeline",
    "sdrt.runtime.backends.onnxruntime",
    "tests.faults.actions",
)


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    """Run commands in forks of a process that has loaded the runtime."""
    with Killer(RUNTIME) as server:
        yield server


@pytest.fixture(scope="module")
def exporter() -> Iterator[Killer]:
    """Run commands in forks of a process that has loaded the exporter, too."""
    with Killer([*RUNTIME, "sdrt.export.bundle_export"]) as server:
        yield server


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Run the test without root's right to read and write everywhere."""
    with rights_dropped():
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write a bundle of hand-written graphs for pictures of 16x16; read-only."""
    folder = tmp_path_factory.mktemp("hand-made") / "bundle"
    return hand_made_bundle(folder, tokenizer=word_tokenizer(), scheduler=json.dumps(SD_V1))


@pytest.fixture(scope="session")
def ready(bundle: Bundle, killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the bundle's engines for ONNX Runtime; to be copied, read-only."""
    place = tmp_path_factory.mktemp("ready")
    built = killer.sdrt("build", bundle.path, "--backend", "onnxruntime", "--store", "store", folder=place)
    assert built.code == 0, built.err
    return place / "store"
