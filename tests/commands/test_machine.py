"""``sdrt doctor``, ``sdrt inspect`` and the options of ``sdrt build`` for TensorRT."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdrt import cli, doctor
from sdrt.artefacts.engine_set import AttentionLayer, EngineManifest, LayerList
from sdrt.artefacts.manifest import seal
from sdrt.artefacts.store import Store
from sdrt.commands.doctor import lines
from sdrt.install_lines import extra_line, removal_line
from sdrt.machine import nvidia
from tests.doubles.engine_sets import make_set
from tests.models.tiny_bundle import tiny_bundle

HERE = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("RTX 4090", "sm89", 24 << 30),))


def run(words: Sequence[str | Path]) -> int:
    """Return the exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_doctor_names_the_line_for_everything_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "libnot-there.so")
    assert run(["doctor", "--json", "--store", tmp_path / "store"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"]["driver"] is None
    for package in found["packages"]:
        assert (package["version"] is None) == (package["install"] is not None)
    for backend in found["backends"]:
        assert backend["runs"] or (backend["reason"] and backend["remedy"])
    assert found["store"]["free_bytes"] > 0
    assert not (tmp_path / "store").exists()
    assert run(["doctor", "--store", tmp_path / "store"]) == 0
    said = capsys.readouterr().out
    assert "install NVIDIA's driver" in said
    assert f"--backend auto is {found['auto']}" in said


def test_every_package_comes_with_the_extras_that_the_doctor_names() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    brings = {extra: {re.split(r"[<>=]", wanted)[0] for wanted in each} for extra, each in extras.items()}
    for name, named in doctor.PACKAGES.items():
        assert {extra for extra, packages in brings.items() if name in packages} == set(named), name


@pytest.mark.parametrize(
    ("missing", "held", "line"),
    [
        ("cuda-bindings", set(), extra_line("rtx")),
        ("cuda-bindings", {"tensorrt"}, extra_line("trt")),
        ("cuda-bindings", {"tensorrt-rtx", "torch"}, extra_line("rtx")),
        ("onnx", {"openvino"}, extra_line("export")),
        ("onnx", {"tensorrt-rtx"}, extra_line("rtx")),
        ("onnxruntime-gpu", set(), extra_line("gpu")),
        ("onnxruntime-gpu", {"onnxruntime"}, f"{removal_line('onnxruntime')} && {extra_line('gpu')}"),
    ],
)
def test_the_line_that_installs_a_package(missing: str, held: set[str], line: str) -> None:
    assert doctor.install_line(missing, held) == line


def test_the_doctor_sees_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "driver", lambda: HERE)
    found = doctor.examine(Store(tmp_path))
    assert found["gpu"]["gpus"][0]["architecture"] == "sm89"
    assert any("RTX 4090, sm89" in line for line in lines(found))


def test_a_store_that_others_can_write_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    assert doctor.store_facts(Store(tmp_path / "store"))["problem"] is None
    (tmp_path / "store").chmod(0o777)
    assert "others can write" in doctor.store_facts(Store(tmp_path / "store"))["problem"]


def test_the_drivers_version_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:11:03 UTC 2025\n")
    assert nvidia.driver_version(file) == "580.65.06"
    assert nvidia.driver_version(tmp_path / "missing") == "unknown"


def test_inspect_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bundle(tmp_path / "bundle")
    assert run(["inspect", tmp_path / "bundle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["components"]["vae_encoder"]["layers"] == {"Conv": {"fp32": 1}}
    assert len(found["components"]["text_encoder"]["attentions"]) == 1
    assert run(["inspect", tmp_path / "bundle"]) == 0
    assert "attentions: 1" in capsys.readouterr().out


def with_layers(folder: Path) -> EngineManifest:
    """Write a hand-made set whose component has a list of layers."""
    make_set(folder)
    manifest = EngineManifest.of(folder)
    shape = {"heads": 8, "queries": 4096, "keys": 77, "head_size": 40, "precision": "fp16"}
    attentions = tuple(
        AttentionLayer.model_validate({"name": name, "fused": fused, **shape})
        for name, fused in (("first", True), ("second", False))
    )
    layers = LayerList(kinds={"convolution": {"fp16": 3}}, attentions=attentions)
    unet = manifest.components["unet"].model_copy(update={"layers": layers})
    changed = manifest.model_copy(update={"components": {"unet": unet}, "host": {"gpu": "sm86"}})
    seal(folder, changed)
    return changed


def test_inspect_engines_from_the_stored_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_layers(tmp_path / "set")
    assert run(["inspect", tmp_path / "set"]) == 0
    said = capsys.readouterr().out
    assert "attentions: 2, 1 of them fused" in said
    assert "decomposed: second (8 heads of 40, 4096x77)" in said
    assert "for gpu sm86" in said
    assert "profile: batch 1 to 4, fastest at 2" in said


@pytest.mark.parametrize("content", [None, "[]", "{", '{"schema_version": 9, "backend": "tensorrt"}', '{"a": 1}'])
def test_inspect_refuses_what_is_neither(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert run(["inspect", tmp_path]) == 3


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--backend", "tensorrt-rtx", "--set", "speed=1"], 2, "speed"),
        (["--backend", "tensorrt-rtx", "--set", "targets=sm90"], 2, "targets"),
        (["--backend", "tensorrt-rtx", "--recipe", "fast"], 2, "sd-v1-latency"),
        (["--backend", "onnxruntime", "--recipe", "sd-v1-latency"], 2, "tensorrt"),
        (["--backend", "tensorrt"], 4, "tensorrt"),
    ],
)
def test_build_refuses_before_anything_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[Any], code: int, named: str
) -> None:
    assert run(["build", "--store", tmp_path / "store", *words]) == code
    assert named in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
