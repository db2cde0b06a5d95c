"""The full-size UNet against PyTorch: within 15 minutes and 16 GiB for ONNX Runtime fp32, OpenVINO fp32 and bf16."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdrt.engines.builders.openvino import OpenVinoBuilder
from tests.full.workshop import Measured, measured
from tests.models.sd_v1_random import sd_v1_random

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
#: Promised for the three comparisons together, including builds of engines.
LIMIT_S, MEMORY_GIB = 15 * 60, 16
#: bf16 only if the processor supports it.
ENGINES = sorted({("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", OpenVinoBuilder().default_precision())})

#: Two guided steps, and batches 1 and 2: every pass of the reference takes 14 s, and larger batches behave the
#: same for every UNet, so only small ones run them.
COMPARE = """
import json, sys
from pathlib import Path
from sdrt.artefacts.bundle import Bundle
from sdrt.checkpoint import open_checkpoint
from sdrt.compare.components import compare_components
from sdrt.compare.inputs import Inputs
from sdrt.compare.reference import Reference
from sdrt.compare.tolerances import load
from sdrt.engines.build import build
from sdrt.engines.request import BuildRequest
from sdrt.artefacts.store import Store
from sdrt.progress import Lines
from sdrt.runtime.request import make_request

checkpoint, bundle, store, pairs = sys.argv[1:]
reference, progress = Reference(open_checkpoint(checkpoint)), Lines()
track = reference.denoise(make_request("a red circle", seed=0, num_inference_steps=2), progress)
inputs, found = Inputs(reference, track, (1, 2)), []
for backend, precision in json.loads(pairs):
    request = BuildRequest(backend, precision, components=("unet",))
    reference.release()
    engines = build(Bundle.open(Path(bundle)), request, Store(Path(store)), progress)
    found += compare_components(reference, engines, inputs, load(), progress)
print(json.dumps([result.model_dump(mode="json") for result in found]))
"""


@dataclass
class Ran:
    """The comparison's output, duration and peak memory."""

    results: list[dict[str, Any]]
    took: Measured


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("compare")
    checkpoint = sd_v1_random(ROOT / "build" / "sd-v1-random")
    export = ["-m", "sdrt", "export", "--checkpoint", checkpoint, "--out", folder / "bundle", "--components", "unet"]
    subprocess.run([sys.executable, *map(str, export)], cwd=ROOT, check=True)
    words = ["-c", COMPARE, checkpoint, folder / "bundle", folder / "store", json.dumps(ENGINES)]
    with (folder / "printed.json").open("wb") as printed:
        took = measured([sys.executable, *map(str, words)], stdout=printed)
    assert took.exit_code == 0
    yield Ran(json.loads((folder / "printed.json").read_bytes()), took)
    shutil.rmtree(folder)  # some 14 GB


def test_the_unet_of_every_engine_passes(ran: Ran) -> None:
    for result in ran.results:
        for case in result["cases"]:
            (output,) = case["outputs"]
            print(f"\n{result['backend']} {result['precision']}, {case['label']}: {output['metrics']}")
    found = [(result["backend"], result["precision"], result["outcome"]) for result in ran.results]
    assert found == [(*engines, "passed") for engines in ENGINES]


def test_it_fits_in_time_and_memory(ran: Ran) -> None:
    print(f"\n{ran.took.seconds:.0f} s, {ran.took.peak_gib:.1f} GiB")
    assert ran.took.seconds < LIMIT_S
    assert ran.took.peak_gib < MEMORY_GIB
