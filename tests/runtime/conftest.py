"""Engine sets of graphs written by hand, for tests of what runs over engines: no torch, a few operators each."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sdrt.artefacts.engine_set import BackendName, BatchRange, EngineSet
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, Precision
from sdrt.engines.build import build_to
from sdrt.engines.request import BuildRequest
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.progress import silent
from tests.doubles.cuda_double.plans import word_tokenizer
from tests.engines.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle as write_bundle

SD_V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="session")
def hand_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineSet]:
    """Gives engine sets of graphs written by hand, each made once, compiled in this process."""
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
