from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange
from sdrt.engines.build import build_key
from sdrt.engines.key import BuildKey
from sdrt.engines.recipe import load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError, BundleError, UsageError
from sdrt.install_lines import extra_line
from sdrt.machine import cpu
from tests.models.tiny_bundle import tiny_bundle

KEY = BuildKey(
    backend="openvino",
    builder=1,
    versions={"openvino": "2026.4.1"},
    host={"machine": "x86_64", "cpu_features": "avx512f"},
    bundle="ab" * 32,
    components=("unet",),
    precision="fp32",
    component_precision={"unet": "fp32"},
    batch=None,
    options={},
    machine={"gpu": "none"},
    recipe=None,
)
CHANGES: dict[str, Any] = {
    "backend": "onnxruntime",
    "builder": 2,
    "versions": {"openvino": "2026.4.2"},
    "host": {"machine": "x86_64", "cpu_features": "avx512f amx_tile"},
    "bundle": "ba" * 32,
    "components": ("unet", "vae_decoder"),
    "precision": "bf16",
    "component_precision": {"unet": "bf16"},
    "batch": BatchRange(min=1, opt=1, max=1),
    "options": {"unet.layout": "blocked"},
    "machine": {"gpu": "sm89"},
    "recipe": load_recipe("sd-v1-default"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("key") / "bundle")


def test_every_field_of_the_key_is_tried() -> None:
    assert CHANGES.keys() == BuildKey.model_fields.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_each_field_changed_alone_is_a_miss(field: str) -> None:
    assert KEY.model_copy(update={field: CHANGES[field]}).digest != KEY.digest


def test_equal_facts_in_another_order_are_a_hit() -> None:
    host = {"cpu_features": "avx512f", "machine": "x86_64"}
    assert KEY.model_copy(update={"host": host}).digest == KEY.digest


def test_one_request_has_one_key(bundle: Bundle) -> None:
    there = BuildRequest("onnxruntime", components=("unet", "vae_decoder"))
    back = BuildRequest("onnxruntime", "fp32", components=("vae_decoder", "unet", "unet"), threads=1)
    assert build_key(bundle, there).digest == build_key(bundle, back).digest


def test_bundles_that_differ_in_weights_alone_have_two_keys(bundle: Bundle, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", seed=1)
    request = BuildRequest("onnxruntime")
    assert build_key(bundle, request).digest != build_key(other, request).digest


def test_what_the_library_and_the_processor_are_is_in_the_key(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    request = BuildRequest("openvino", "fp32")
    here = build_key(bundle, request)
    monkeypatch.setattr("sdrt.engines.builders.openvino.cpu_features", lambda: ("avx2",))
    assert build_key(bundle, request).digest != here.digest
    monkeypatch.undo()
    monkeypatch.setattr("sdrt.engines.builders.openvino.installed_version", lambda _: "1999.1")
    assert build_key(bundle, request).digest != here.digest


def test_bf16_is_the_default_where_the_processor_has_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: ("avx512_bf16",))
    key = build_key(bundle, BuildRequest("openvino"))
    assert key.precision == "bf16"
    assert key.component_precision["unet"] == "bf16"
    assert key.component_precision["text_encoder"] == "fp32"
    monkeypatch.setattr(cpu, "cpu_features", lambda: ("avx2",))
    assert build_key(bundle, BuildRequest("openvino")).precision == "fp32"
    with pytest.raises(BackendUnavailableError, match="neither AMX nor AVX512-BF16") as refused:
        build_key(bundle, BuildRequest("openvino", "bf16"))
    assert refused.value.hint == "use --precision fp32"


def test_a_precision_that_a_backend_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="onnxruntime computes in fp32, not in bf16"):
        build_key(bundle, BuildRequest("onnxruntime", "bf16"))


def test_requests_for_nothing_known_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no component"):
        build_key(bundle, BuildRequest("onnxruntime", components=()))
    with pytest.raises(UsageError, match="no engines are built for backend 'torch'"):
        build_key(bundle, BuildRequest("torch"))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="holds no denoise_step"):
        build_key(bundle, BuildRequest("onnxruntime", components=("denoise_step",)))


def test_a_missing_library_names_its_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("sdrt.machine.packages.version", missing)
    with pytest.raises(BackendUnavailableError, match="onnxruntime is not installed") as refused:
        build_key(bundle, BuildRequest("onnxruntime"))
    assert refused.value.hint == extra_line("cpu")
