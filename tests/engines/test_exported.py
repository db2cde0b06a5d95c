"""A small exported fp16 checkpoint, compiled to TensorRT-RTX plans through the worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.checkpoint import open_checkpoint
from sdrt.engines.build import build_to
from sdrt.engines.recipe import load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.export import export_bundle
from tests.doubles.progress import Notes
from tests.engines.graphs import OPERATORS
from tests.models.tiny import tiny_checkpoint

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
COMPONENTS = {"text_encoder", "unet", "denoise_step", "vae_encoder", "vae_decoder"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export an fp16 bundle whose heads have kernels: 32 and 64 wide."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = tiny_checkpoint(
        folder / "checkpoint",
        unet={"block_out_channels": [32, 64, 128, 128], "cross_attention_dim": 64},
        vae={"block_out_channels": [16, 32, 64, 64], "norm_num_groups": 1},
        text_encoder={"hidden_size": 64, "num_attention_heads": 2, "projection_dim": 64},
    )
    return export_bundle(open_checkpoint(str(checkpoint)), folder / "bundle", precision="fp16")


def test_every_operator_is_covered_by_the_quick_tests(bundle: Bundle) -> None:
    used = {
        node.op_type
        for component in bundle.manifest.components
        for node in onnx.load(bundle.graph(component), load_external_data=False).graph.node
    }
    assert used == OPERATORS


def test_it_compiles_fused_for_three_targets(bundle: Bundle, tmp_path: Path) -> None:
    recipe = load_recipe("sd-v1-default", ["targets=sm86,sm89,sm120"])
    engines = build_to(bundle, BuildRequest("tensorrt-rtx", recipe=recipe), tmp_path / "engines", Notes())
    assert set(engines.manifest.components) == COMPONENTS
    assert engines.manifest.host == {"gpu": "sm86 sm89 sm120"}
    for component in engines.manifest.components.values():
        assert component.layers is not None
        assert all(attention.fused for attention in component.layers.attentions)


def test_ctrl_c_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    words = ["build", str(bundle.path), "--backend", "tensorrt-rtx", "--out", str(tmp_path / "engines")]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdrt", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and their children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("tensorrt-rtx"):
            break
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    # The build itself takes far longer: the command did not wait for it.
    assert time.monotonic() - start < 10
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []
