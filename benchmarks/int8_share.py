"""Speed of int8 by the share of the UNet's work that is in int8, relative to bf16 by OpenVINO.

With --diffusers, diffusers' UNet of the checkpoint, in bf16 with channels last, runs in the same rounds.

How many modules have to stay in bf16 depends on the checkpoint; here several shares of the products' FLOPs are measured
on any weights. Ranges come from two steps of one picture, since speed does not depend on them. The modules that stay
are drawn at random over the whole graph, which is the worst case for conversions between the precisions. A contender's
time is that of one pass of both halves of guidance; contenders run in turn.

Run: python benchmarks/int8_share.py BUNDLE [--diffusers CHECKPOINT] [--shares 1,0.75,0.5] [--threads N] [--rounds N]
     [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from sdrt.arrays import Array
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Precision
from sdrt.bench.machine import machine, versions
from sdrt.engines.builders.openvino_fp32 import keep_last_layers, keep_timestep
from sdrt.export import calibration
from sdrt.export.quantise import module_of, products, quantise
from sdrt.export.shared_prefix import count_flops
from sdrt.libraries.openvino import core, cpu_config
from sdrt.machine.cpu import usable_cpus
from sdrt.progress import for_terminal


def main() -> None:
    """Measure all contenders, print a line for each, and write int8_share.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="in fp32")
    parser.add_argument("--diffusers", type=Path, help="the bundle's checkpoint, a folder in diffusers' layout")
    parser.add_argument("--shares", default="1,0.75,0.5", help="of the products' FLOPs in int8, separated by commas")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/int8-share"))
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    with tempfile.TemporaryDirectory(dir=args.bundle.resolve().parent) as folder:
        graphs = quantised(bundle, [float(share) for share in args.shares.split(",")], Path(folder))
        inputs = feeds(bundle)
        contenders = {"bf16": opened(bundle.graph("unet"), "bf16", inputs, args.threads)}
        contenders |= {name: opened(graph, "int8", inputs, args.threads) for name, graph in graphs.items()}
        if args.diffusers is not None:
            contenders["diffusers bf16"] = diffusers_unet(args.diffusers, inputs, args.threads)
        seconds = measure(contenders, args.rounds)
    rows = []
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["bf16"], strict=True)]
        rows.append({"contender": name, "seconds": values, "of_bf16": ratios})
        middle = f"{statistics.median(values):8.3f} s, {statistics.median(ratios):.2f} of bf16"
        print(f"{name:40} {middle} ({min(ratios):.2f} to {max(ratios):.2f})")
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"threads": args.threads, "machine": machine(), "versions": versions(), "rows": rows}
    (args.out / "int8_share.json").write_text(json.dumps(found, indent=1) + "\n")


def quantised(bundle: Bundle, shares: list[float], folder: Path) -> dict[str, Path]:
    """Write the UNet with each share of its products' FLOPs in int8, and return the graphs by their description."""
    source = bundle.graph("unet")
    graph = onnx.load(str(source), load_external_data=False).graph
    tensors = list(dict.fromkeys(node.input[0] for node in products(graph)))
    calibration.PROMPTS, calibration.STEPS = calibration.PROMPTS[:1], 2
    found = calibration.calibrate(bundle, tensors, for_terminal())
    graphs: dict[str, Path] = {}
    for share in shares:
        target = folder / f"int8-{share}" / "model.onnx"
        target.parent.mkdir()
        kept, reached = all_but(graph, share)
        made = quantise(source, target, found.ranges, kept)
        graphs[f"int8, {reached:.0%} of the FLOPs, {made} products"] = target
    return graphs


def all_but(graph: onnx.GraphProto, share: float) -> tuple[tuple[str, ...], float]:
    """Choose the modules to keep, from a fixed seed, and return them with the share of FLOPs that is then in int8."""
    flops: dict[str, int] = {}
    for node in products(graph):
        module = module_of(node)
        flops[module] = flops.get(module, 0) + count_flops(graph, [node])
    whole = left = sum(flops.values())
    kept = []
    for module in np.random.default_rng(0).permutation(sorted(flops)).tolist():
        if left - flops[module] >= share * whole:
            kept.append(module)
            left -= flops[module]
    return tuple(kept), left / whole


def opened(graph: Path, precision: Precision, inputs: dict[str, Array], threads: int) -> Callable[[], object]:
    """Return a pass of a UNet graph as sdrt's engines compute it, without the test that int8 engines have to pass."""
    model = core().read_model(graph)
    keep_timestep(model)
    keep_last_layers(model)
    request = core().compile_model(model, "CPU", cpu_config(precision, threads)).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True)


def diffusers_unet(checkpoint: Path, inputs: dict[str, Array], threads: int) -> Callable[[], object]:
    """Return a pass of the checkpoint's UNet by diffusers."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(threads)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.bfloat16)
    unet = unet.eval().to(memory_format=torch.channels_last)
    given = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in inputs.items()}
    given["sample"] = given["sample"].to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return unet(**given).sample

    return run


def feeds(bundle: Bundle) -> dict[str, Array]:
    """Return random inputs of the UNet, with two rows for both halves of guidance."""
    rng = np.random.default_rng(0)
    inputs = bundle.manifest.components["unet"].inputs
    return {one.name: rng.standard_normal((2, *map(int, one.shape[1:]))).astype(one.dtype) for one in inputs}


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of a pass of each contender, round by round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
