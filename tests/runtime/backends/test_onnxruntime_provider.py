"""ONNX Runtime's providers: the requested one runs, or an error says what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from sdrt import Pipeline
from sdrt.artefacts.bundle import Bundle
from sdrt.engines.build import build_key, build_to
from sdrt.engines.builders.onnxruntime_gpu import OPSET, gpu_graph
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError, EngineError, UsageError
from sdrt.install_lines import extra_line, removal_line
from sdrt.libraries.onnxruntime import ERRORS, PROVIDERS
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import open_engines, prepare
from sdrt.prepare.source import Source
from sdrt.progress import silent
from sdrt.runtime.backends.opening import open_engine
from tests.models.tiny_bundle import feeds

GPU = ("cuda", "tensorrt")
REAL_SESSION = onnxruntime.InferenceSession


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Make ONNX Runtime list GPU providers; return the list of sessions' requests. Sessions run on the CPU."""
    asked: list[dict[str, Any]] = []
    listed = [*PROVIDERS["tensorrt"], *PROVIDERS["cpu"]]

    class Session:
        def __init__(self, path: Path, options: Any, providers: list[str]) -> None:
            refused = False
            if providers != PROVIDERS["cpu"]:
                refused = options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
            asked.append({"providers": providers, "fallback refused": refused})
            self._session = REAL_SESSION(path, onnxruntime.SessionOptions(), providers=PROVIDERS["cpu"])
            self._providers = [*providers, *PROVIDERS["cpu"]] if providers != PROVIDERS["cpu"] else providers

        def get_providers(self) -> list[str]:
            return self._providers

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


@pytest.fixture
def build_for(hand_bundle: Bundle, tmp_path: Path) -> Callable[[Any], Any]:
    """Return a function that builds a set of the decoder for a provider."""

    def build(provider: Any) -> Any:
        request = BuildRequest("onnxruntime", components=("vae_decoder",), provider=provider)
        return build_to(hand_bundle, request, tmp_path / f"set-{provider}", silent)

    return build


@pytest.mark.parametrize("provider", GPU)
def test_row_65_a_provider_that_is_not_installed_is_an_error_before_anything_is_built(
    hand_bundle: Bundle, tmp_path: Path, provider: Any
) -> None:
    with pytest.raises(BackendUnavailableError, match=r"this onnxruntime has no .*CUDAExecutionProvider") as caught:
        prepare(Source(bundle=hand_bundle.path), Choice("onnxruntime"), provider=provider, store=tmp_path / "store")
    assert caught.value.exit_code == 4
    assert caught.value.hint == f"{removal_line('onnxruntime')} && {extra_line('gpu')}"
    assert not (tmp_path / "store").exists()


def test_providers_are_onnxruntimes(hand_bundle: Bundle, tmp_path: Path) -> None:
    for backend in ("openvino", "tensorrt-rtx"):
        with pytest.raises(UsageError, match="--provider cuda is for onnxruntime"):
            Pipeline.load(bundle=hand_bundle.path, backend=backend, provider="cuda", store=tmp_path)
    with pytest.raises(UsageError, match="openvino does not run on the provider cuda"):
        build_key(hand_bundle, BuildRequest("openvino", provider="cuda"))


def test_a_provider_is_part_of_the_key_and_the_cpus_key_is_as_before(hand_bundle: Bundle) -> None:
    keys = {p: build_key(hand_bundle, BuildRequest("onnxruntime", provider=p)) for p in ("cpu", *GPU)}  # type: ignore[arg-type]
    assert len({key.digest for key in keys.values()}) == 3
    assert keys["cpu"].options == {}
    assert {name: keys["cuda"].options[f"unet.{name}"] for name in ("provider", "opset")} == {
        "provider": "cuda",
        "opset": str(OPSET),
    }


@pytest.mark.parametrize("provider", GPU)
def test_a_set_for_a_gpu_holds_the_graph_that_its_providers_take_and_runs_there(
    build_for: Callable[[Any], Any], hand_bundle: Bundle, gpu_build: list[dict[str, Any]], provider: str
) -> None:
    engines = build_for(provider)
    graph = engines.path / engines.component("vae_decoder").file
    assert graph.read_bytes() == gpu_graph(hand_bundle.graph("vae_decoder")).SerializeToString(deterministic=True)
    with open_engine(engines, "vae_decoder") as engine:
        engine.run(**feeds("vae_decoder", 2))
    assert gpu_build == [{"providers": PROVIDERS[provider], "fallback refused": True}]


def test_the_cpus_set_runs_on_the_cpu(build_for: Callable[[Any], Any], hand_bundle: Bundle) -> None:
    session = REAL_SESSION(hand_bundle.graph("vae_decoder"), providers=PROVIDERS["cpu"])
    given = feeds("vae_decoder", 2)
    with open_engine(build_for("cpu"), "vae_decoder") as engine:
        difference = np.abs(engine.run(**given)["sample"] - session.run(None, given)[0])
    # Optimised and not, one convolution of four channels: a few of float32's 24 bits.
    assert difference.max() < 1e-5


@pytest.mark.parametrize("provider", GPU)
def test_row_66_a_provider_that_does_not_start_is_not_replaced_by_the_cpu(
    build_for: Callable[[Any], Any], gpu_build: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    engines = build_for(provider)
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: PROVIDERS["cpu"])
    with pytest.raises(BackendUnavailableError, match=f"would run on CPU.*, not {PROVIDERS[provider][0]}") as caught:
        open_engine(engines, "vae_decoder")
    assert caught.value.exit_code == 4


def test_onnxruntime_itself_refuses_to_fall_back(
    build_for: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the real library's refusal, with CUDA faked as available, becomes sdrt's error."""
    engines = build_for("cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS["cuda"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BackendUnavailableError, match="fallback to CPU EP has been explicitly disabled"),
    ):
        open_engine(engines, "vae_decoder")


def test_a_cpu_graph_that_does_not_open_is_the_engines_fault(
    build_for: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ERRORS[0]("broken")

    engines = build_for("cpu")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(EngineError, match="broken"):
        open_engine(engines, "vae_decoder")


def test_a_set_built_for_another_provider_is_not_taken_for_it(
    build_for: Callable[[Any], Any], gpu_build: list[dict[str, Any]], tmp_path: Path
) -> None:
    engines = build_for("cuda")
    source = Source(engines=engines.path, trust=engines.digest)
    assert open_engines(source, provider="cuda", store=tmp_path / "store").digest == engines.digest
    for asked in ("cpu", "tensorrt"):
        with pytest.raises(UsageError, match=f"--provider is {asked}; .* are for cuda"):
            open_engines(source, provider=asked, store=tmp_path / "store")
