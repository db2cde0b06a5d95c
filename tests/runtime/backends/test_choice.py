from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from sdrt import doctor
from sdrt.artefacts.engine_set import EngineSet
from sdrt.errors import BackendUnavailableError, EngineError, UsageError
from sdrt.install_lines import extra_line, package_line
from sdrt.machine import nvidia
from sdrt.prepare.choice import Choice
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.runtime.backends import opening
from sdrt.runtime.backends.opening import open_engine
from sdrt.runtime.backends.registry import available, choose_backend
from tests.doubles.engine_sets import make_set
from tests.doubles.nvidia_driver import Driver

CPU_PACKAGES = {"onnxruntime": "1.31", "openvino": "2026.4"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace the installed packages' versions by a dict."""
    packages = dict(CPU_PACKAGES)

    def fake_version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr("sdrt.machine.packages.version", fake_version)
    return packages


def driver(monkeypatch: pytest.MonkeyPatch, status: int | None, gpus: int = 0) -> None:
    """Install a double of NVIDIA's driver whose cuInit returns a status; None: no driver is installed."""

    def load(name: str) -> Driver:
        if status is None:
            raise OSError(f"{name}: cannot open shared object file")
        return Driver(status, gpus)

    monkeypatch.setattr(nvidia.ctypes, "CDLL", load)  # type: ignore[attr-defined]


def test_without_a_gpu_openvino_is_chosen_and_the_others_are_named(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(monkeypatch, None)
    backend, reason = choose_backend()
    assert backend == "openvino"
    assert reason.startswith("openvino 2026.4 is the fastest that can run here; tensorrt needs an NVIDIA driver")


def test_what_is_not_installed_is_not_chosen(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, None)
    del installed["openvino"]
    backend, reason = choose_backend()
    assert backend == "onnxruntime"
    assert "openvino is not installed" in reason


def test_with_nothing_installed_the_extra_is_named(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, None)
    installed.clear()
    with pytest.raises(BackendUnavailableError, match="no backend can run here") as refused:
        choose_backend()
    assert refused.value.hint == extra_line("cpu")


@pytest.mark.parametrize(
    ("backend", "status", "gpus", "message", "hint"),
    [
        ("tensorrt", None, 0, "libcuda.so.1 is missing", "driver"),
        ("tensorrt-rtx", None, 0, "libcuda.so.1 is missing", "driver"),
        ("tensorrt", 100, 0, r"NVIDIA's driver finds no GPU \(CUresult 100\)", "driver"),
        ("tensorrt", 803, 0, r"NVIDIA's driver does not start \(CUresult 803\)", "driver"),
        ("tensorrt", 0, 0, "the driver finds none", "driver"),
        ("tensorrt", 0, 1, "tensorrt is not installed", "[trt]"),
    ],
)
def test_a_gpu_backend_needs_driver_gpu_and_package(
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    status: int | None,
    gpus: int,
    message: str,
    hint: str,
) -> None:
    driver(monkeypatch, status, gpus)
    with pytest.raises(BackendUnavailableError, match=message) as refused:
        available(backend)
    assert refused.match(message)
    assert hint in refused.value.hint


def on_gpu(monkeypatch: pytest.MonkeyPatch, architecture: str, name: str = "NVIDIA H100 PCIe") -> None:
    """Fake a GPU with its driver."""
    here = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu(name, architecture, 80 << 30),))
    monkeypatch.setattr(nvidia, "driver", lambda: here)


@pytest.mark.parametrize("architecture", ["sm70", "sm90", "sm100", "sm103"])
@pytest.mark.parametrize("has_rtx", [False, True])
def test_tensorrt_rtx_does_not_run_on_a_gpu_that_it_has_no_target_for(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, architecture: str, has_rtx: bool
) -> None:
    on_gpu(monkeypatch, architecture)
    installed.update({"cuda-bindings": "13.4", **({"tensorrt-rtx": "1.7"} if has_rtx else {})})
    with pytest.raises(BackendUnavailableError, match=f"sm121; NVIDIA H100 PCIe is {architecture}") as refused:
        available("tensorrt-rtx")
    assert extra_line("trt") in refused.value.hint
    backend, reason = choose_backend()
    assert (backend, doctor.auto()) == ("openvino", "openvino")
    assert "tensorrt-rtx runs on sm75" in reason
    (entry,) = (each for each in doctor.backends() if each.backend == "tensorrt-rtx")
    assert (entry.runs, entry.remedy) == (False, refused.value.hint)
    installed["tensorrt"] = "11.2"
    assert (choose_backend()[0], doctor.auto()) == ("tensorrt", "tensorrt")


@pytest.mark.parametrize("architecture", ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"])
def test_tensorrt_rtx_runs_on_its_targets(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    on_gpu(monkeypatch, architecture)
    installed.update({"cuda-bindings": "13.4", "tensorrt-rtx": "1.7"})
    assert choose_backend()[0] == "tensorrt-rtx"


def test_nothing_is_exported_for_a_backend_that_does_not_run_on_the_gpu(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_gpu(monkeypatch, "sm90")
    installed.update({"cuda-bindings": "13.4", "tensorrt-rtx": "1.7"})
    monkeypatch.setattr("sdrt.prepare.engines.open_bundle", lambda *_, **__: pytest.fail("a bundle is made"))
    with pytest.raises(BackendUnavailableError, match="is sm90"):
        prepare(Source(), Choice("tensorrt-rtx"), store=tmp_path)


@pytest.mark.parametrize(
    ("library", "distribution"),
    [
        ("tensorrt", "tensorrt"),
        ("tensorrt", "tensorrt-cu13"),
        ("tensorrt", "tensorrt-cu12"),
        ("tensorrt-rtx", "tensorrt-rtx"),
        ("tensorrt-rtx", "tensorrt-rtx-cu13"),
        ("tensorrt-rtx", "tensorrt-rtx-cu12"),
    ],
)
def test_tensorrt_of_any_cuda_is_one(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: Any, distribution: str
) -> None:
    on_gpu(monkeypatch, "sm86")
    installed.update({"cuda-bindings": "12.9.4", distribution: "11.2.1"})
    available(library)
    assert doctor.install_line("cuda-bindings", {library}).endswith("[trt]'" if library == "tensorrt" else "[rtx]'")
    assert {entry.name: entry.version for entry in doctor.packages()}[library] == "11.2.1"
    engines = open_set(tmp_path / "set", backend=library, versions={library: "11.2.0"})
    with pytest.raises(EngineError, match=f"built by {library} 11.2.0; here is 11.2.1") as refused:
        opening.check_host(engines.manifest)
    # The extra of the installed distribution: another would overwrite its files.
    assert refused.value.hint.startswith(f"{package_line(f'{distribution}==11.2.0')}; ")


@pytest.mark.parametrize(
    ("here", "opens"),
    [
        ("11.2.1.2", True),
        ("11.2.1.3", True),
        ("11.10", True),
        ("11.2.1", False),
        ("11.1.9", False),
        ("10.16", False),
        ("12.0", False),
    ],
)
@pytest.mark.parametrize("compatible", [False, True])
def test_a_version_compatible_set_opens_in_later_versions_of_the_same_major(
    installed: dict[str, str], tmp_path: Path, here: str, opens: bool, compatible: bool
) -> None:
    installed["tensorrt"] = here
    changes = {"backend": "tensorrt", "versions": {"tensorrt": "11.2.1.2"}, "version_compatible": compatible}
    engines = open_set(tmp_path / "set", **changes)
    assert engines.manifest.version_compatible is compatible
    if here == "11.2.1.2" or (opens and compatible):
        opening.check_host(engines.manifest)
        return
    with pytest.raises(EngineError, match=re.escape(f"built by tensorrt 11.2.1.2; here is {here}")):
        opening.check_host(engines.manifest)


def test_onnxruntime_of_either_package_will_do(installed: dict[str, str]) -> None:
    del installed["onnxruntime"]
    installed["onnxruntime-gpu"] = "1.31"
    available("onnxruntime")


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(UsageError, match="no backend 'torch'") as refused:
        available("torch")
    assert refused.value.hint == "choose from tensorrt, tensorrt-rtx, openvino, onnxruntime"


def imports_openvino(source: str) -> bool:
    """Return whether a source imports OpenVINO when executed; type-checking imports are indented."""
    return bool(re.search(r"^(import|from) openvino\b", source, re.MULTILINE))


def test_openvino_is_imported_without_its_telemetry_everywhere() -> None:
    """Find imports that bypass load_library: one sends an event, and starts a process, for the whole test run."""
    root = Path(__file__).parents[3]
    sources = [path for folder in ("sdrt", "tests", "demo", "benchmarks") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [path.name for path in sources if imports_openvino(path.read_text())] == []
    assert imports_openvino("import os\nimport openvino as ov\n")
    assert imports_openvino("from openvino import Core\n")


def test_choosing_imports_no_backend() -> None:
    code = """
import sys
from sdrt.runtime.backends.registry import choose_backend
assert choose_backend()[0]
heavy = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch", "numpy"} & sys.modules.keys()
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def open_set(folder: Path, **changes: Any) -> EngineSet:
    return EngineSet.open(folder, trust=make_set(folder, **changes))


def test_a_set_of_another_version_is_refused(tmp_path: Path) -> None:
    engines = open_set(tmp_path / "set", versions={"openvino": "2020.1"})
    with pytest.raises(EngineError, match=r"built by openvino 2020\.1; here is") as refused:
        open_engine(engines, "unet")
    assert refused.value.hint.startswith(f"{package_line('openvino==2020.1')}; ")


def test_a_set_for_another_processor_is_refused(tmp_path: Path) -> None:
    engines = open_set(tmp_path / "set", versions={"openvino": version("openvino")}, host={"machine": "s390x"})
    with pytest.raises(BackendUnavailableError, match="built for a s390x processor"):
        open_engine(engines, "unet")


def test_a_set_of_a_backend_that_is_not_installed_is_refused(tmp_path: Path, installed: dict[str, str]) -> None:
    del installed["openvino"]
    with pytest.raises(BackendUnavailableError, match="openvino is not installed"):
        open_engine(open_set(tmp_path / "set"), "unet")


def test_a_component_that_is_not_held_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="holds no text_encoder"):
        open_engine(open_set(tmp_path / "set"), "text_encoder")


def test_threads_are_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        open_engine(open_set(tmp_path / "set"), "unet", threads=0)


def test_a_library_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(opening, "import_module", broken)
    with pytest.raises(BackendUnavailableError, match="openvino is installed but does not import: libgomp"):
        open_engine(open_set(tmp_path / "set"), "unet")
