"""What int8 brings by how many blocks stay in fp32, which depends on the checkpoint, beside OpenVINO's own bf16.

A checkpoint is quantised with as few blocks kept as its test allows; here each number of them is tried, on any weights:
ranges are those of two steps of one picture, since speed does not depend on them. One pass of both halves of guidance,
each contender in turn.

Run: python benchmarks/kept_blocks.py BUNDLE [--kept 0,2,4] [--threads N] [--rounds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from sdrt.bench.machine import machine, versions
from sdrt.bundle import Bundle, Precision
from sdrt.export import calibration
from sdrt.export.quantise import products, quantise, sensitive
from sdrt.progress import for_terminal
from sdrt.runtime.backends.base import Array
from sdrt.runtime.backends.cpu import usable_cpus
from sdrt.runtime.backends.openvino import core, cpu_config

if TYPE_CHECKING:
    from openvino import InferRequest


def main() -> None:
    """Measure, print a line for each contender, and write kept_blocks.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="in fp32")
    parser.add_argument("--kept", default="0,2,4", help="numbers of blocks that stay in fp32, separated by commas")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/kept-blocks"))
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    with tempfile.TemporaryDirectory(dir=asked.bundle.resolve().parent) as folder:
        graphs = quantised(bundle, [int(count) for count in asked.kept.split(",")], Path(folder))
        contenders = {"bf16": opened(bundle.graph("unet"), "bf16", asked.threads)}
        contenders |= {name: opened(graph, "int8", asked.threads) for name, graph in graphs.items()}
        seconds = measure(contenders, feeds(bundle), asked.rounds)
    rows = []
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["bf16"], strict=True)]
        rows.append({"contender": name, "seconds": values, "of_bf16": ratios})
        middle = f"{statistics.median(values):8.3f} s, {statistics.median(ratios):.2f} of bf16"
        print(f"{name:40} {middle} ({min(ratios):.2f} to {max(ratios):.2f})")
    asked.out.mkdir(parents=True, exist_ok=True)
    found = {"threads": asked.threads, "machine": machine(), "versions": versions(), "rows": rows}
    (asked.out / "kept_blocks.json").write_text(json.dumps(found, indent=1) + "\n")


def quantised(bundle: Bundle, counts: list[int], folder: Path) -> dict[str, Path]:
    """The UNet in int8 for each number of kept blocks, by what is kept."""
    source = bundle.graph("unet")
    graph = onnx.load(str(source), load_external_data=False).graph
    tensors = list(dict.fromkeys(node.input[0] for node in products(graph)))
    calibration.PROMPTS, calibration.STEPS = calibration.PROMPTS[:1], 2
    found = calibration.calibrate(bundle, tensors, for_terminal())
    blocks = sensitive(graph)
    graphs: dict[str, Path] = {}
    for count in counts:
        target = folder / f"int8-{count}" / "model.onnx"
        target.parent.mkdir()
        made = quantise(source, target, found.ranges, blocks[:count])
        graphs[f"int8, {count} blocks kept, {made} products"] = target
    return graphs


def opened(graph: Path, precision: Precision, threads: int) -> InferRequest:
    """A graph of the UNet, compiled with the settings of sdrt's engines, but not tested: its ranges are few steps'."""
    return core().compile_model(core().read_model(graph), "CPU", cpu_config(precision, threads)).create_infer_request()


def feeds(bundle: Bundle) -> dict[str, Array]:
    """Both halves of guidance: random inputs of the UNet."""
    rng = np.random.default_rng(0)
    inputs = bundle.manifest.components["unet"].inputs
    return {one.name: rng.standard_normal((2, *map(int, one.shape[1:]))).astype(one.dtype) for one in inputs}


def measure(contenders: dict[str, InferRequest], inputs: dict[str, Array], rounds: int) -> dict[str, list[float]]:
    """Seconds of a pass of each contender, round by round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, request in contenders.items():
            start = time.perf_counter()
            request.infer(inputs, share_inputs=True)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
