"""The commands of the TensorRT pages, executed on an fp16 bundle of a few operators."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sdrt.artefacts.manifest import CheckpointRecord, Manifest, ModelRecord, file_records, seal
from tests.engines.graphs import HALF, write

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = Path(sys.executable).parent
#: Commands not run here: installing, exporting in the environment, and those that need a driver or a checkpoint.
NOT_RUN = ("pip ", ".venv/bin/pip ", "export ", "sha256sum ", "sdrt denoise ", "sdrt compare ", "polygraphy run ")
PICTURE, LATENTS = ("batch", 3, 512, 512), ("batch", 8, 64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with an fp16 bundle of a vae_encoder."""
    import numpy as np
    from onnx import helper

    root = tmp_path_factory.mktemp("pages")
    node = helper.make_node("Conv", ["sample", "kernel"], ["latent_parameters"], strides=[8, 8], name="patches")
    kernel = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float16)
    path, spec = write(
        root / "bundle/vae_encoder/model.onnx",
        [node],
        {"sample": (HALF, PICTURE)},
        {"latent_parameters": (HALF, LATENTS)},
        {"kernel": kernel},
    )
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        (root / "bundle" / name).parent.mkdir()
        (root / "bundle" / name).write_text("{}")
    manifest = Manifest(
        schema_version=1,
        checkpoint=CheckpointRecord(name="pages", digest="ab" * 32),
        precision="fp16",
        opset=23,
        model=ModelRecord(
            latent_channels=4, latent_size=64, image_size=512, scaling_factor=0.18215, max_tokens=77, hidden_size=64
        ),
        components={"vae_encoder": spec.model_copy(update={"graph": f"vae_encoder/{path.name}"})},
        files=file_records(root / "bundle"),
        versions={},
    )
    seal(root / "bundle", manifest)
    return root


def commands(page: str) -> list[str]:
    """Return the indented lines of a page that are commands."""
    return [line.strip() for line in (DOCS / page).read_text().splitlines() if line.startswith("    ")]


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a page with one component and the test's own store."""
    words = shlex.split(command)
    if words[:2] == ["sdrt", "build"]:
        words += ["--components", "vae_encoder", "--store", "store"]
    if words[:2] == ["sdrt", "store"]:
        words += ["--store", "store"]
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [SCRIPTS / words[0], *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_polygraphy_page(folder: Path) -> None:
    run_here = [command for command in commands("how-to-polygraphy.md") if not command.startswith(NOT_RUN)]
    assert len(run_here) == 3
    for command in run_here:
        done = run(folder, command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "vae_encoder.plan").stat().st_size > 10_000


def test_the_portable_engines_page(folder: Path) -> None:
    build, inspect, _, install, take, denoise = commands("how-to-portable-engines.md")
    assert install.startswith(NOT_RUN)
    built = run(folder, build)
    assert built.returncode == 0, built.stderr
    digest = hashlib.sha256((folder / "engines/manifest.json").read_bytes()).hexdigest()
    assert digest in built.stdout
    shown = run(folder, inspect)
    assert "convolution             1 fp16" in shown.stdout
    assert "for gpu sm86 sm89" in shown.stdout
    taken = run(folder, take.replace("DIGEST", digest))
    assert taken.returncode == 0, taken.stderr
    assert run(folder, take.replace("DIGEST", "0" * 64)).returncode == 8
    assert run(folder, denoise.replace("DIGEST", digest)).returncode in (3, 4)
