"""The key of a TensorRT set: each of its fields changed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange
from sdrt.engines.build import build_key, build_to
from sdrt.engines.recipe import load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.machine import nvidia
from sdrt.progress import silent
from tests.doubles.engines import build_few_bytes
from tests.helpers.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle

GPU = nvidia.Gpu("RTX 3090", "sm86", 24 << 30)
DRIVER = nvidia.Driver("580.65.06", "13.0", (GPU,))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fake a machine with a GPU and both libraries; changing the dict changes it."""
    facts: dict[str, Any] = {"driver": DRIVER, "version": "10.16.0"}
    monkeypatch.setattr(nvidia, "driver", lambda: facts["driver"])
    monkeypatch.setattr("sdrt.engines.builders.tensorrt.installed_version", lambda _: facts["version"])
    return facts


@pytest.mark.parametrize(
    "changed",
    [
        {"driver": nvidia.Driver("581.00", "13.0", (GPU,))},
        {"driver": nvidia.Driver("580.65.06", "13.1", (GPU,))},
        {"driver": nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("RTX 4090", "sm89", 24 << 30),))},
        {"version": "10.16.1"},
    ],
)
def test_tensorrt_plans_depend_on_gpu_driver_cuda_and_library(
    bundle: Bundle, machine: dict[str, Any], changed: dict[str, Any]
) -> None:
    request = BuildRequest("tensorrt")
    before = build_key(bundle, request)
    assert build_key(bundle, request).digest == before.digest
    machine.update(changed)
    assert build_key(bundle, request).digest != before.digest


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    "setting",
    [
        "targets=sm86",
        "hardware_compatibility=ampere_plus",
        "version_compatible=true",
        "optimization_level=5",
        "workspace_mib=512",
        "batch.unet=1:1:2",
        "batch.vae_decoder=1:1:2",
    ],
)
def test_every_field_of_the_recipe_counts(bundle: Bundle, machine: dict[str, Any], backend: Any, setting: str) -> None:
    before = build_key(bundle, BuildRequest(backend, recipe=load_recipe("sd-v1-default")))
    assert build_key(bundle, BuildRequest(backend)).digest == before.digest
    after = build_key(bundle, BuildRequest(backend, recipe=load_recipe("sd-v1-default", [setting])))
    assert after.digest != before.digest


def test_rtx_plans_depend_on_targets_and_library_and_not_on_this_machine(
    bundle: Bundle, machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_key(bundle, BuildRequest("tensorrt-rtx"))
    assert before.host == {"gpu": "sm86 sm89 sm120"}
    assert before.machine == {}
    machine["driver"] = nvidia.Driver("1", "12.0", ())
    monkeypatch.setattr("sdrt.machine.cpu.cpu_features", lambda: ("another",))
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).digest == before.digest
    machine["version"] = "1.7.2"
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).digest != before.digest


@pytest.mark.parametrize(
    ("architecture", "targets"), [("sm75", "sm75"), ("sm121", "sm121"), ("sm90", "sm86 sm89 sm120")]
)
@pytest.mark.parametrize("recipe", [None, load_recipe("sd-v1-latency")])
def test_rtx_plans_without_targets_are_for_the_gpu_that_is_here(
    bundle: Bundle, machine: dict[str, Any], architecture: str, targets: str, recipe: Any
) -> None:
    machine["driver"] = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("A GPU", architecture, 24 << 30),))
    key = build_key(bundle, BuildRequest("tensorrt-rtx", recipe=recipe))
    assert key.host == {"gpu": targets}
    assert key.recipe is not None
    assert " ".join(key.recipe.targets or ()) == targets
    named = load_recipe("sd-v1-default", ["targets=sm86"])
    assert build_key(bundle, BuildRequest("tensorrt-rtx", recipe=named)).host == {"gpu": "sm86"}


def test_rtx_plans_are_built_without_a_driver(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> nvidia.Driver:
        raise BackendUnavailableError("there is no NVIDIA driver", hint="install it")

    monkeypatch.setattr(nvidia, "driver", missing)
    monkeypatch.setattr("sdrt.engines.builders.tensorrt.installed_version", lambda _: "1.7")
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).host == {"gpu": "sm86 sm89 sm120"}


@pytest.mark.parametrize(("backend", "said"), [("tensorrt", True), ("tensorrt-rtx", False)])
def test_a_manifest_says_that_its_plans_open_in_later_versions(
    bundle: Bundle, machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, said: bool
) -> None:
    compile_here(monkeypatch, build_few_bytes)
    for setting, expected in (("true", said), ("false", False)):
        recipe = load_recipe("sd-v1-default", [f"version_compatible={setting}"])
        built = build_to(bundle, BuildRequest(backend, recipe=recipe), tmp_path / setting, silent)
        assert built.manifest.version_compatible is expected
        assert ("version_compatible" in (built.path / "manifest.json").read_text()) is expected


def test_the_builders_version_and_the_bundle_count(
    bundle: Bundle, machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = build_key(bundle, BuildRequest("tensorrt-rtx"))
    other = tiny_bundle(tmp_path / "other", seed=1)
    assert build_key(other, BuildRequest("tensorrt-rtx")).digest != before.digest
    monkeypatch.setattr("sdrt.engines.builders.tensorrt.TensorRtRtxBuilder.version", 99)
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).digest != before.digest


def test_pictures_are_the_recipes_or_the_users(bundle: Bundle, machine: dict[str, Any]) -> None:
    two = BatchRange(min=2, opt=2, max=2)
    key = build_key(bundle, BuildRequest("tensorrt-rtx", batch=two))
    assert key.batch is None
    assert key.recipe is not None
    assert key.recipe.batch["vae_decoder"] == two


def test_a_wider_compatibility_widens_the_host(bundle: Bundle, machine: dict[str, Any]) -> None:
    assert build_key(bundle, BuildRequest("tensorrt")).host == {"gpu": "sm86"}
    wide = load_recipe("sd-v1-default", ["hardware_compatibility=ampere_plus"])
    assert build_key(bundle, BuildRequest("tensorrt", recipe=wide)).host == {"gpu": "sm80+"}


def test_a_precision_that_the_graphs_do_not_have_is_refused(bundle: Bundle, machine: dict[str, Any]) -> None:
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).precision == "fp32"
    with pytest.raises(UsageError, match="the bundle is fp32"):
        build_key(bundle, BuildRequest("tensorrt-rtx", "fp16"))
    with pytest.raises(BackendUnavailableError, match="int8"):
        build_key(bundle, BuildRequest("tensorrt-rtx", "int8"))


def test_tensorrt_needs_its_gpu_and_rtx_needs_none(bundle: Bundle, machine: dict[str, Any]) -> None:
    machine["driver"] = nvidia.Driver("580.65.06", "13.0", ())
    assert build_key(bundle, BuildRequest("tensorrt-rtx")).host
    with pytest.raises(BackendUnavailableError, match="builds on the GPU"):
        build_key(bundle, BuildRequest("tensorrt"))


def test_other_backends_take_no_recipe(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="without a recipe"):
        build_key(bundle, BuildRequest("onnxruntime", recipe=load_recipe("sd-v1-default")))
