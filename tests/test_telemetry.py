"""No library sends telemetry: OpenVINO's test is beside its backend, this is ONNX Runtime's."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime

from sdrt.artefacts.bundle import Bundle
from tests.models.tiny_bundle import tiny_bundle

OPEN = """
import sys
import sdrt
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
#: Variables that turn it off in other tests' environments, whatever sdrt does.
ALSO_OFF = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")


def test_a_session_leaves_no_trace_at_home(tmp_path: Path) -> None:
    bundle: Bundle = tiny_bundle(tmp_path / "bundle", components=("vae_decoder",))
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in (*ALSO_OFF, "XDG_CACHE_HOME")}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", OPEN, str(bundle.graph("vae_decoder"))]
    subprocess.run(words, env=environment, check=True)
    assert list(home.iterdir()) == []


def test_the_library_still_knows_the_switch() -> None:
    """Look for the switch in the library, since a run with telemetry on would send."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert data.find(b"ORT_DISABLE_TELEMETRY") >= 0
        assert data.find(b"ORT_DISABLE_NOTHING") < 0
