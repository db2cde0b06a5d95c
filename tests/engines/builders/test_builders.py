from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange, EngineComponent
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, Precision
from sdrt.engines.builders import builder
from sdrt.errors import BackendUnavailableError, EngineError, ResourceError, UsageError
from sdrt.machine.cpu import supports_bf16
from sdrt.runtime.backends import openvino as openvino_backend
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.onnxruntime import OnnxRuntimeEngine
from sdrt.runtime.backends.openvino import OpenVinoEngine
from tests.helpers.jobs import job, without_weights
from tests.models.tiny_bundle import feeds, tiny_bundle

Open = Callable[..., Engine]
RUNNERS: dict[str, Any] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}

# Relative L2 to ONNX's own reference. fp32: sums of at most 216 products in another order, 1e-6 measured. bf16 rounds
# to 8 bits, 4e-3 at most each time: 3e-3 measured on one convolution.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Return a function that builds a component of a bundle in this process and opens it."""

    def build_and_open(
        bundle: Bundle, component: ComponentName, backend: str, precision: Precision = "fp32", **changes: Any
    ) -> Engine:
        built: EngineComponent = builder(backend).build(
            job(bundle, component, tmp_path, backend=backend, precision=precision, **changes)
        )
        engine: Engine = RUNNERS[backend](component, built, tmp_path, 1)
        return engine

    return build_and_open


def reference(bundle: Bundle, component: ComponentName, batch: int) -> npt.NDArray[Any]:
    """Compute by ONNX's reference evaluator."""
    model = onnx.load(bundle.graph(component))
    outputs: Any = ReferenceEvaluator(model).run(None, dict(feeds(component, batch)))
    output: npt.NDArray[Any] = outputs[0]
    return output


def relative_l2(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_engines_compute_what_the_graph_says(
    hand_made: Bundle, opened: Open, backend: str, component: ComponentName
) -> None:
    engine = opened(hand_made, component, backend)
    for batch in (1, 2, 3):
        [output] = engine.run(**feeds(component, batch)).values()
        assert relative_l2(output, reference(hand_made, component, batch)) < TOLERANCE["fp32"]
    assert engine.last_s > 0


@pytest.mark.parametrize("backend", RUNNERS)
def test_other_weights_are_told_apart(tmp_path: Path, hand_made: Bundle, opened: Open, backend: str) -> None:
    other = tiny_bundle(tmp_path / "other", seed=1, components=("unet",))
    [output] = opened(other, "unet", backend).run(**feeds("unet", 2)).values()
    assert relative_l2(output, reference(hand_made, "unet", 2)) > 0.1


def test_bf16_is_bf16_or_refused(hand_made: Bundle, opened: Open) -> None:
    maker = builder("openvino")
    if not supports_bf16():
        with pytest.raises(BackendUnavailableError, match="neither AMX nor AVX512-BF16"):
            maker.precision("bf16")
        return
    assert maker.precision("bf16") == "bf16"
    [output] = opened(hand_made, "vae_encoder", "openvino", "bf16").run(**feeds("vae_encoder", 2)).values()
    error = relative_l2(output, reference(hand_made, "vae_encoder", 2))
    # An error as small as fp32's would mean that it computed in fp32.
    assert 10 * TOLERANCE["fp32"] < error < TOLERANCE["bf16"]


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_run_is_the_same_again_and_in_any_batch_and_outlives_the_next(
    hand_made: Bundle, opened: Open, backend: str
) -> None:
    engine = opened(hand_made, "unet", backend)
    three = feeds("unet", 3)
    first = engine.run(**three)["out_sample"]
    kept = first.copy()
    last = engine.run(**{name: array[2:] for name, array in three.items()})["out_sample"]
    engine.run(**feeds("unet", 3, seed=1))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(last, kept[2:])
    np.testing.assert_array_equal(engine.run(**three)["out_sample"], kept)


@pytest.mark.parametrize("backend", RUNNERS)
def test_inputs_need_not_be_contiguous_and_stay_as_they_are(hand_made: Bundle, opened: Open, backend: str) -> None:
    engine = opened(hand_made, "vae_decoder", backend)
    [latents] = feeds("vae_decoder", 2).values()
    strided = np.repeat(latents, 2, axis=3)[..., ::2]
    assert not strided.flags.c_contiguous
    before = strided.copy()
    np.testing.assert_array_equal(
        engine.run(latent_sample=strided)["sample"], engine.run(latent_sample=latents)["sample"]
    )
    np.testing.assert_array_equal(strided, before)


def test_one_number_of_pictures_makes_a_static_engine(hand_made: Bundle, opened: Open) -> None:
    engine = opened(hand_made, "vae_decoder", "openvino", batch=BatchRange(min=2, opt=2, max=2))
    [output] = engine.run(**feeds("vae_decoder", 2)).values()
    assert relative_l2(output, reference(hand_made, "vae_decoder", 2)) < TOLERANCE["fp32"]
    with pytest.raises(UsageError, match="batches of 2 to 2; got 1"):
        engine.run(**feeds("vae_decoder", 1))


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_closed_engine_says_so(hand_made: Bundle, opened: Open, backend: str) -> None:
    with opened(hand_made, "vae_decoder", backend) as engine:
        pass
    with pytest.raises(EngineError, match="vae_decoder is closed"):
        engine.run(**feeds("vae_decoder", 1))


@pytest.mark.parametrize("backend", RUNNERS)
def test_what_is_not_an_engine_is_refused(hand_made: Bundle, tmp_path: Path, backend: str) -> None:
    built = builder(backend).build(job(hand_made, "vae_decoder", tmp_path, backend=backend))
    (tmp_path / built.file).write_bytes(b"noise" * 1000)
    with pytest.raises(EngineError, match=f"{backend} cannot open"):
        RUNNERS[backend]("vae_decoder", built, tmp_path, 1)


@pytest.mark.parametrize("backend", RUNNERS)
def test_what_is_not_a_graph_is_not_compiled(hand_made: Bundle, tmp_path: Path, backend: str) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    spec = without_weights(hand_made, "unet")
    noise = job(hand_made, "unet", tmp_path, backend=backend, graph=tmp_path / "noise.onnx", spec=spec)
    with pytest.raises(EngineError, match=r"cannot compile .*noise\.onnx"):
        builder(backend).build(noise)


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_full_disk_is_named(hand_made: Bundle, tmp_path: Path, backend: str) -> None:
    # Once without the limit, so that only the engine is written within it.
    builder(backend).build(job(hand_made, "unet", tmp_path, backend=backend))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ResourceError, match="exceed the size limit"):
            builder(backend).build(job(hand_made, "vae_decoder", tmp_path, backend=backend))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_session_on_another_provider_is_refused(
    hand_made: Bundle, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = "onnxruntime.InferenceSession.get_providers"
    monkeypatch.setattr(providers, lambda _: ["AzureExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="AzureExecutionProvider"):
        opened(hand_made, "vae_decoder", "onnxruntime")


def test_another_precision_than_the_sets_is_refused(
    hand_made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = builder("openvino").build(job(hand_made, "vae_decoder", tmp_path, backend="openvino"))
    # Which hints OpenVINO follows depends on the processor, so the expectation is changed, not the hint.
    monkeypatch.setattr(openvino_backend, "inference_precision", lambda _: "f16")
    with pytest.raises(BackendUnavailableError, match="openvino would run vae_decoder in"):
        OpenVinoEngine("vae_decoder", built, tmp_path, 1)


def test_a_signal_is_heard_after_engines_were_closed(hand_made: Bundle, tmp_path: Path) -> None:
    """Open and close engines of two cores in the order that once left the thread a freed stack for signal handlers."""
    built = builder("openvino").build(job(hand_made, "vae_decoder", tmp_path, backend="openvino"))
    code = """
import pickle, signal, sys
from pathlib import Path
from sdrt.runtime.backends.openvino import OpenVinoEngine
built = pickle.loads(bytes.fromhex(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
first, second = (OpenVinoEngine("vae_decoder", built, Path(sys.argv[2]), 1) for _ in range(2))
first.close()
second.close()
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, pickle.dumps(built).hex(), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("heard\n", 0), done.stderr


def test_openvino_keeps_to_itself(tmp_path: Path) -> None:
    code = """
import sys
from sdrt.runtime.backends.openvino import load_library
load_library().Core()
assert "openvino.tools.ovc" in sys.modules, "what sends telemetry is imported no more: is load_library still needed?"
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
