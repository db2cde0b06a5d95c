"""The packages and tests of `make test-gpu`, on machines that a stand-in for nvidia-smi describes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.makefile import ROOT
from tools import gpu_extras

FakeGpu = Callable[..., None]


@pytest.fixture
def fake_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Return a function that puts an nvidia-smi with the given output on the PATH."""

    def make(said: str, code: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "said").write_text(said)
        script = folder / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat '{folder / 'said'}'\nexit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(
    ("said", "extras"),
    [
        ("7.5\n", "trt,rtx"),
        ("8.0\n8.0\n", "trt,rtx"),
        ("8.6\n", "trt,rtx"),
        ("8.9\n", "trt,rtx"),
        ("12.0\n", "trt,rtx"),
        ("12.1\n", "trt,rtx"),
        # The first GPU is used.
        ("9.0\n8.6\n", "trt"),
        ("10.0\n", "trt"),
        ("10.3\n", "trt"),
    ],
)
def test_the_extras_are_those_that_run_on_the_gpu(
    fake_gpu: FakeGpu, said: str, extras: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpu(said)
    assert gpu_extras.main() == 0
    assert capsys.readouterr().out == f"{extras}\n"


@pytest.mark.parametrize(
    ("said", "code"),
    [("", 0), ("No devices were found\n", 6), ("[N/A]\n", 0), ("8.6\n", 9), ("couldn't talk to it\n", 9)],
)
def test_without_a_gpu_it_says_what_is_needed(
    fake_gpu: FakeGpu, said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpu(said, code)
    assert gpu_extras.main() == 4
    told = capsys.readouterr()
    assert told.out == ""
    assert "need an NVIDIA GPU" in told.err
    assert told.err.count("\n") == 1


def test_without_nvidia_smi_it_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_extras.main() == 4
    assert "nvidia-smi does not run" in capsys.readouterr().err


def make(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make on a fresh environment whose pip only prints its arguments."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / ".ready-to-run").touch()
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    command = ["make", "--old-file", str(venv / ".ready-to-run"), f"VENV={venv}", "PIP=echo", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("said", "wanted"), [("9.0\n", "dev,trt]"), ("8.9\n", "dev,trt,rtx]")])
def test_make_installs_what_runs_here(fake_gpu: FakeGpu, tmp_path: Path, said: str, wanted: str) -> None:
    fake_gpu(said)
    made = make(tmp_path, str(tmp_path / "venv" / ".ready-for-gpu"))
    assert made.returncode == 0, made.stderr
    assert wanted in made.stdout.splitlines()[-1]


def test_make_installs_nothing_without_a_gpu(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu("No devices were found\n", 6)
    made = make(tmp_path, str(tmp_path / "venv" / ".ready-for-gpu"))
    assert made.returncode != 0
    assert "need an NVIDIA GPU; nvidia-smi says: No devices were found" in made.stderr
    # The recipe is shown, and no pip is run.
    assert not [line for line in made.stdout.splitlines() if line.startswith("--no-build-isolation")]
    assert not (tmp_path / "venv" / ".ready-for-gpu").exists()


def test_make_runs_the_gpu_tests_under_a_time_limit(tmp_path: Path) -> None:
    said = make(tmp_path, "--dry-run", "test-gpu").stdout
    (run,) = (line for line in said.splitlines() if "-m pytest" in line)
    assert "-m gpu" in run
    assert "-o faulthandler_timeout=120" in run
    assert "onnxruntime-gpu" not in said


def test_make_keeps_onnxruntimes_gpu_tests_apart(tmp_path: Path) -> None:
    lines = make(tmp_path, "--dry-run", "test-gpu", "GPU_ORT=1").stdout.splitlines()
    (run,) = (line for line in lines if "test_onnxruntime_gpu.py" in line)
    assert run.startswith(f"{tmp_path / 'venv'}-gpu-ort/bin/python -m pytest -m gpu")
    (installed,) = (line for line in lines if "[gpu," in line)
    assert installed.startswith(f"{tmp_path / 'venv'}-gpu-ort/bin/python -m pip")
    assert "cpu" not in installed
