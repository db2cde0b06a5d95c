"""Engines in int8: built from quantised bundles only, tested where they are built, and run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import COMPONENTS, ComponentName
from sdrt.artefacts.store import Store
from sdrt.engines.builders import builder
from sdrt.engines.self_test import LIMIT
from sdrt.errors import ArtefactError, BackendUnavailableError, NumericError, UsageError
from sdrt.export import calibration, quantised_bundle
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.quantised_bundle import quantise_bundle
from sdrt.libraries import openvino as openvino_library
from sdrt.machine.cpu import cpu_features
from sdrt.prepare.bundles import bundle_precision, open_bundle
from sdrt.prepare.source import Source
from sdrt.progress import Progress
from sdrt.runtime.backends.openvino import OpenVinoEngine
from tests.helpers.jobs import job
from tests.models.tiny_bundle import HIDDEN_SIZE, MAX_TOKENS, feeds, tiny_bundle

WITH_STEP: tuple[ComponentName, ...] = (*COMPONENTS, "denoise_step")
BETAS = '{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}'
#: Relative L2 to ONNX Runtime over the same graph: where bf16 computes the rest, 3e-3; one level of the grid is 8e-3.
#: Without instructions for int8 products (VNNI, AMX), OpenVINO's kernels are less exact, and the limit of the self-test
#: is what an engine must meet.
TOLERANCE = 2e-2 if any("vnni" in name or "amx" in name for name in cpu_features()) else LIMIT


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("plain") / "bundle", components=WITH_STEP, scheduler=BETAS)


@pytest.fixture(scope="module")
def quantised(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    rows = np.random.default_rng(0).standard_normal((len(calibration.PROMPTS) + 2, MAX_TOKENS, HIDDEN_SIZE))
    with pytest.MonkeyPatch.context() as patch:
        # The hand-made bundle's tokenizer knows no words.
        patch.setattr(calibration, "_encode", lambda _bundle: rows.astype(np.float32))
        yield quantise_bundle(plain, tmp_path_factory.mktemp("int8") / "bundle")


def step_feeds(bundle: Bundle, batch: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    inputs = bundle.manifest.components["denoise_step"].inputs
    return {s.name: rng.uniform(0.5, 2, (batch, *map(int, s.shape[1:]))).astype(s.dtype) for s in inputs}


@pytest.mark.parametrize("component", ["unet", "denoise_step"])
@pytest.mark.parametrize("batch", [None, BatchRange(min=2, opt=2, max=2)])
def test_an_engine_computes_what_the_graph_says(
    quantised: Bundle, tmp_path: Path, component: ComponentName, batch: BatchRange | None
) -> None:
    asked = job(quantised, component, tmp_path, backend="openvino", precision="int8", batch=batch)
    engine = OpenVinoEngine(component, builder("openvino").build(asked), tmp_path, 1)
    given = feeds("unet", 2) if component == "unet" else step_feeds(quantised, 2)
    expected = open_cpu_session(quantised.graph(component)).run(None, given)[0]
    found = next(iter(engine.run(**given).values()))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < TOLERANCE


@pytest.mark.parametrize("component", ["unet", "denoise_step"])
@pytest.mark.parametrize("factor", [1.5, np.nan])
def test_an_engine_that_computes_wrongly_is_not_built(
    quantised: Bundle, tmp_path: Path, component: ComponentName, factor: float
) -> None:
    """Use a wrong scale in place of a wrong kernel."""
    model = onnx.load(quantised.graph(component))
    for weight in model.graph.initializer:
        if weight.name == "int8.kernel.scale":
            spoilt = numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(numpy_helper.from_array(spoilt.astype(np.float32), weight.name))
    folder = tmp_path / "unet"
    folder.mkdir()
    onnx.save(model, folder / "spoilt.onnx")
    (folder / "int8-vectors.npz").write_bytes((quantised.path / "unet" / "int8-vectors.npz").read_bytes())
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(BETAS)
    (tmp_path / "set").mkdir()
    asked = job(quantised, component, tmp_path / "set", backend="openvino", precision="int8")
    with pytest.raises(NumericError, match=rf"{component} computes int8 wrongly here: relative L2 error [0-9.inf]+"):
        builder("openvino").build(asked.model_copy(update={"graph": folder / "spoilt.onnx"}))


@pytest.mark.parametrize(
    ("backend", "asked", "exported", "error", "said"),
    [
        ("openvino", "int8", "fp32", UsageError, "the bundle is in fp32: engines in int8"),
        ("openvino", "fp32", "int8", UsageError, "the bundle is in int8: engines in fp32"),
        ("onnxruntime", "int8", "fp32", BackendUnavailableError, "computes in fp32, not in int8"),
        ("onnxruntime", None, "int8", BackendUnavailableError, "computes in fp32, not in int8"),
        ("onnxruntime", "fp32", "int8", UsageError, "the bundle is in int8: engines in fp32"),
        ("tensorrt-rtx", None, "int8", BackendUnavailableError, "not in int8"),
    ],
)
def test_what_does_not_fit_is_refused(
    backend: str, asked: Any, exported: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        builder(backend).precision(asked, exported)


def test_a_quantised_bundle_is_built_in_int8() -> None:
    maker = builder("openvino")
    assert maker.precision(None, "int8") == maker.precision("int8", "int8") == "int8"
    assert maker.component_precision("unet", "int8", "int8") == "int8"
    assert maker.component_precision("text_encoder", "int8", "fp32") == "fp32"
    assert maker.component_precision("vae_decoder", "int8", "fp32") == maker.default_precision()


def test_a_bundle_is_quantised_once(
    plain: Bundle, quantised: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = Store(tmp_path / "store"), Source(bundle=plain.path)
    with pytest.raises(ArtefactError, match="is not quantised yet") as caught:
        open_bundle(source, store, precision="int8", build=False)
    assert "--precision int8" in caught.value.hint
    made: list[Path] = []

    def copy(bundle: Bundle, folder: Path, *, progress: Progress) -> None:
        made.append(shutil.copytree(quantised.path, folder, dirs_exist_ok=True))

    monkeypatch.setattr(quantised_bundle, "quantise_bundle", copy)
    first, again = (open_bundle(source, store, precision="int8") for _ in range(2))
    assert first.digest == again.digest == quantised.digest
    assert len(made) == 1
    assert open_bundle(source, store, precision="int8", build=False).digest == quantised.digest
    # A quantised bundle is used unchanged.
    assert open_bundle(Source(bundle=quantised.path), store, precision="int8").path == quantised.path
    assert bundle_precision("openvino", "int8") == "int8"
    assert bundle_precision("onnxruntime", "int8") == "fp32"


@pytest.mark.parametrize(("native", "computed"), [(True, "bf16"), (False, "f32")])
def test_the_rest_of_an_int8_graph_is_in_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, computed: str
) -> None:
    monkeypatch.setattr(openvino_library, "supports_bf16", lambda: native)
    assert openvino_library.cpu_config("int8", 1)["INFERENCE_PRECISION_HINT"] == computed
    assert openvino_library.cpu_config("fp32", 1)["INFERENCE_PRECISION_HINT"] == "f32"
