"""Ceilings of this GPU, and times that plans must beat: our graphs and diffusers' UNet by torch, as CUDA graphs."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch

from sdrt.artefacts.manifest import ComponentName
from tools.gpu_day.findings import Findings, Skipped
from tools.gpu_day.torch_graph import TorchGraph
from tools.gpu_day.workbench import Workbench

STEPS = 50
PICTURES = (1, 4, 8)
#: Rows of the UNet's batch for one guided picture.
ROWS: dict[ComponentName, int] = {"denoise_step": 1, "unet": 2}
#: Largest plausible ratio of a rate to the ceiling, allowing for clocks that vary.
CEILING_SLACK = 1.2


def speed(found: Findings, bench: Workbench) -> None:
    """Measure ceilings, then guided steps."""
    ceiling = _ceilings(found, bench)
    try:
        bundle = bench.full_size_bundle()
    except Skipped as reason:
        found.fact("our full-size graphs", f"skipped: {reason}")
    else:
        for name, rows in ROWS.items():
            graph = TorchGraph(bundle.graph(name), bench.kernels_on, random_weights=True)
            for pictures in PICTURES:
                taken = bench.stopwatch().captured_ms(partial(_run, graph, pictures * rows, bench.kernels_on))
                rate = bundle.manifest.components[name].flops * pictures * rows / taken / 1e9
                line = f"{name}, {pictures} pictures"
                shown = _short(taken), _short(rate), _short(taken * STEPS / 1e3)
                found.fact(f"{line}: ms, TFLOP/s, s in {STEPS} steps", shown)
                found.check(f"{line}: within the ceiling", rate <= CEILING_SLACK * ceiling, _short(rate))
    _diffusers(found, bench)


def _ceilings(found: Findings, bench: Workbench) -> float:
    """Measure a product of matrices and a copy, and return the product's TFLOP/s."""
    watch, device = bench.stopwatch(), bench.kernels_on
    square = torch.randn(bench.matrix, bench.matrix, device=device).half()
    rate = 2 * bench.matrix**3 / watch.ms(lambda: square @ square) / 1e9
    found.fact("products of matrices in fp16, TFLOP/s", _short(rate))
    source = torch.zeros(bench.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    found.fact("copies, TB/s", _short(2 * bench.copied_bytes / watch.ms(lambda: target.copy_(source)) / 1e9))
    return rate


def _run(graph: TorchGraph, rows: int, device: str) -> object:
    feeds = {}
    for name, kind in graph.inputs.items():
        shape = [axis.dim_value or rows for axis in kind.shape.dim]
        feeds[name] = torch.full(shape, 0.5, device=device, dtype=graph.types[kind.elem_type])
    return graph(**feeds)


def _diffusers(found: Findings, bench: Workbench) -> None:
    """Measure diffusers' UNet in fp16, by calls and as a CUDA graph."""
    try:
        from diffusers import UNet2DConditionModel
    except ModuleNotFoundError as error:
        found.fact("diffusers", f"skipped: {error}")
        return
    config = json.loads(bench.unet_config.read_text())
    unet = UNet2DConditionModel.from_config(config).eval()
    # Not by the model's own to(), which warns about how weights are loaded.
    convert: Any = torch.nn.Module.to
    convert(unet, bench.kernels_on, torch.float16, memory_format=torch.channels_last)
    size, width = config["sample_size"], config["cross_attention_dim"]
    sample = torch.rand(2, config["in_channels"], size, size, device=bench.kernels_on).half()
    states = torch.rand(2, 77, width, device=bench.kernels_on).half()
    timestep = torch.tensor(500.0, device=bench.kernels_on)

    def step() -> object:
        return unet(sample, timestep, states, return_dict=False)

    with torch.inference_mode():
        found.fact("diffusers in fp16, a guided step by calls, ms", _short(bench.stopwatch().ms(step)))
        found.fact("diffusers in fp16, a guided step as a graph, ms", _short(bench.stopwatch().captured_ms(step)))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
