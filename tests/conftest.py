"""Fixtures of all tests: user files stay untouched, and slow fixtures are made once a run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BackendName, BatchRange, EngineSet
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, Precision
from sdrt.artefacts.store import Store
from sdrt.engines.build import build_to
from sdrt.engines.request import BuildRequest
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.progress import silent
from tests.command_line import CommandLine
from tests.doubles.cuda_double.plans import SD_V1, word_tokenizer
from tests.helpers.compiling import compile_here
from tests.helpers.fixtures import Engines
from tests.models import odd_checkpoints, tiny_checkpoint
from tests.models.tiny_bundle import tiny_bundle as write_bundle


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its own home before any library looks for the user's, and keep it offline."""
    home = Path(tempfile.mkdtemp(prefix="sdrt-tests-"))
    config.add_cleanup(functools.partial(shutil.rmtree, home, ignore_errors=True))
    os.environ.update(
        HOME=str(home),
        XDG_CACHE_HOME=str(home / "cache"),
        HF_HOME=str(home / "huggingface"),
        HF_HUB_OFFLINE="1",
        NO_COLOR="1",
    )
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The workers run in parallel already; torch's threads would only compete with each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of the run see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def store(shared: Path) -> Store:
    """Return a store that all tests of the run share; tests only add to it."""
    return Store(shared / "store")


@pytest.fixture(scope="session")
def checkpoint_path(shared: Path) -> Callable[[str], Path]:
    """Return a function that gives a small checkpoint's folder by name, "tiny" or an odd one; made once, read-only."""

    def make(name: str) -> Path:
        path = shared / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                part = path.with_suffix(".part")
                made = tiny_checkpoint(part) if name == "tiny" else tiny_checkpoint(part, **odd_checkpoints()[name])
                made.rename(path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_path(checkpoint_path: Callable[[str], Path]) -> Path:
    """Return the folder of the tiny checkpoint; read-only."""
    return checkpoint_path("tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_path: Path, store: Store) -> Bundle:
    """Export the tiny checkpoint into the store; read-only."""
    return open_bundle(Source(checkpoint=str(tiny_path)), store)


@pytest.fixture(scope="session")
def tiny_engines(tiny_bundle: Bundle, store: Store) -> Engines:
    """Return a function that builds the tiny checkpoint's engines by backend and precision into the store."""

    def build(backend: BackendName = "onnxruntime", precision: Precision = "fp32") -> EngineSet:
        source = Source(bundle=tiny_bundle.path)
        return prepare(source, Choice(backend, precision), store=store.root)

    return build


@pytest.fixture(scope="session")
def hand_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineSet]:
    """Return a function that builds engine sets of hand-written graphs, each once, in this process."""
    made: dict[str, EngineSet] = {}

    def make(
        backend: BackendName = "onnxruntime",
        precision: Precision = "fp32",
        prediction_type: str = "epsilon",
        components: tuple[ComponentName, ...] = COMPONENTS,
        batch: BatchRange | None = None,
        guidance_scale: float = DEFAULT_GUIDANCE_SCALE,
    ) -> EngineSet:
        key = repr((backend, precision, prediction_type, components, batch, guidance_scale))
        if key not in made:
            folder = tmp_path_factory.mktemp("set")
            more = tuple(name for name in components if name not in COMPONENTS)
            bundle = write_bundle(
                folder / "bundle",
                components=(*COMPONENTS, *more),
                precision=precision,
                tokenizer=word_tokenizer(),
                scheduler=json.dumps({**SD_V1, "prediction_type": prediction_type}),
                guidance_scale=guidance_scale,
            )
            request = BuildRequest(backend, "fp32", components, batch=batch)
            with pytest.MonkeyPatch.context() as patch:
                compile_here(patch)
                made[key] = build_to(bundle, request, folder / "engines", silent)
        return made[key]

    return make


@pytest.fixture
def sdrt(capfd: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """Run the command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield CommandLine(capfd)
    signal.signal(signal.SIGTERM, handler)
