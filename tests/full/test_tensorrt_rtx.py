"""The full-size fp16 bundle compiled to TensorRT-RTX plans, on a machine without a GPU."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.engines.build import build_to
from sdrt.engines.recipe import load_recipe
from sdrt.engines.request import BuildRequest
from tests.doubles.progress import Notes
from tests.full.workshop import ROOT, Workshop
from tests.models.sd_v1_random import sd_v1_random

pytestmark = pytest.mark.full

#: Promised; the two UNet graphs are compiled one after the other within this memory.
BUILD_S = 240
MEMORY_GIB = 8
#: Attentions of SD v1's UNet: two in each of sixteen transformer blocks.
UNET_ATTENTIONS = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    workshop = Workshop(tmp_path_factory.mktemp("fp16"))
    checkpoint, out = sd_v1_random(ROOT / "build" / "sd-v1-random"), workshop.folder / "bundle"
    workshop.sdrt("export fp16", "export", "--checkpoint", checkpoint, "--precision", "fp16", "--out", out)
    print(workshop.table())
    yield Bundle.open(out)
    shutil.rmtree(workshop.folder)


def test_the_fp16_bundle_compiles_in_time_and_memory(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdrt.engines.build.available_memory_bytes", lambda: MEMORY_GIB << 30)
    recipe = load_recipe("sd-v1-default", ["targets=sm86,sm89,sm120"])
    notes, start = Notes(), time.monotonic()
    engines = build_to(bundle, BuildRequest("tensorrt-rtx", recipe=recipe), tmp_path / "engines", notes)
    seconds = time.monotonic() - start
    print("\n".join([table(engines), f"all of it {seconds:.1f} s", *notes.notes]))
    assert not any("warns" in note for note in notes.notes)
    for name in ("unet", "denoise_step"):
        layers = engines.component(name).layers
        assert layers is not None
        # Heads of 40, 80 and 160 in fp16 have kernels on every target.
        assert [attention.fused for attention in layers.attentions] == [True] * UNET_ATTENTIONS
    peaks = [component.peak_memory_bytes or 0 for component in engines.manifest.components.values()]
    assert 1 << 30 < max(peaks) < MEMORY_GIB << 30
    assert seconds < BUILD_S
    shutil.rmtree(tmp_path / "engines")


def table(engines: EngineSet) -> str:
    """Return one line a component: time, size, memory and attentions."""
    lines = [""]
    for name, component in engines.manifest.components.items():
        assert component.peak_memory_bytes is not None
        assert component.layers is not None
        fused = sum(attention.fused for attention in component.layers.attentions)
        lines.append(
            f"{name:14}{component.precision:6}{component.seconds:8.1f} s {component.size_bytes / 1e9:6.2f} GB"
            f" {component.peak_memory_bytes / 2**30:6.2f} GiB, {fused} of {len(component.layers.attentions)} fused"
        )
    return "\n".join(lines)
