"""The wheel in an empty environment: the demo runs with the extra cpu, without torch and without a repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*words: str | Path, cwd: Path, **changes: str) -> str:
    """Run a command and return its stdout; show its stderr if it fails."""
    environment = {**os.environ, **changes}
    done = subprocess.run([*words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.long
def test_wheel_runs_the_demo_without_torch(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheel", cwd=ROOT)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    _run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    _run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[cpu]", cwd=tmp_path)
    installed = {
        package["name"] for package in json.loads(_run(python, "-m", "pip", "list", "--format=json", cwd=tmp_path))
    }
    assert "onnxruntime" in installed
    assert not installed & {"torch", "diffusers", "transformers", "onnx"}
    options = ["--prompt", "a red circle", "--seed", "0", "--steps", "2", "--store", "store", "--out", "picture.png"]
    sdrt = tmp_path / "venv" / "bin" / "sdrt"
    facts = json.loads(_run(sdrt, "denoise", *options, "--json", cwd=tmp_path, PYTHONPATH=""))
    assert facts["checkpoint"] == "demo"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
