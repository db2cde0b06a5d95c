"""A bundle of hand-written graphs that benchmarks in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, seal
from tests.doubles.cuda_double.plans import SD_V1, word_tokenizer
from tests.helpers.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle as write_bundle

GFLOP = 10**9


def _claiming(folder: Path, components: tuple[ComponentName, ...]) -> Bundle:
    """Write a bundle of 16x16 pictures whose manifest states a GFLOP for every component."""
    made = write_bundle(folder, components=components, tokenizer=word_tokenizer(), scheduler=json.dumps(SD_V1))
    parts = {name: part.model_copy(update={"flops": GFLOP}) for name, part in made.manifest.components.items()}
    seal(folder, made.manifest.model_copy(update={"components": parts}))
    return Bundle.open(folder)


@pytest.fixture(scope="session")
def hand_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write one without denoise_step."""
    return _claiming(tmp_path_factory.mktemp("bench") / "bundle", COMPONENTS)


@pytest.fixture(scope="session")
def step_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write one with denoise_step."""
    return _claiming(tmp_path_factory.mktemp("bench") / "bundle", (*COMPONENTS, "denoise_step"))


@pytest.fixture(scope="session")
def hand_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the folder of a store for engines built from it."""
    return tmp_path_factory.mktemp("bench") / "store"


@pytest.fixture(scope="module")
def built_here() -> Iterator[None]:
    """Compile engines in this process."""
    with pytest.MonkeyPatch.context() as patch:
        compile_here(patch)
        yield
