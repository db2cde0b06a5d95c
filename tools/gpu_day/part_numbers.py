"""Accuracy of the exported fp16 graphs on this hardware, relative to the same graphs in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch

from tools.gpu_day.findings import Findings
from tools.gpu_day.torch_graph import TorchGraph
from tools.gpu_day.workbench import Workbench

#: Tolerance of a component's relative L2; torch on a CPU reaches 1e-3 to 5e-3: fp16 keeps 11 bits of each output.
TOLERANCE = 5e-2
SHOWN = 6
#: Scale of the inputs that are positive, unlike standard normal numbers.
SCALES = {"timestep": 300.0, "sigma": 3.0}


def numbers(found: Findings, bench: Workbench) -> None:
    """Compare each component at batches 1 and 3, and report the largest value of each operator."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bundle = bench.bundle()
    for name, component in bundle.manifest.components.items():
        if component.precision != "fp16":
            found.fact(f"{name}", f"is {component.precision} in the bundle")
            continue
        peaks = _Peaks()
        half = TorchGraph(bundle.graph(name), bench.kernels_on)
        exact = TorchGraph(bundle.graph(name), bench.kernels_on, half=torch.float32, watch=peaks)
        for batch in (1, 3):
            feeds = _feeds(half, batch, bench.kernels_on)
            wanted = exact(**{key: v.float() if v.dtype == torch.float16 else v for key, v in feeds.items()})
            for key, got in half(**feeds).items():
                error = float((got.double() - wanted[key].double()).norm() / wanted[key].double().norm())
                good = error <= TOLERANCE and bool(got.isfinite().all())
                found.check(f"{name} {key}, batch {batch}: relative L2", good, f"{error:.2e}")
        found.fact(f"{name}: largest values", peaks.largest())


class _Peaks:
    """Collects the largest absolute output of each kind of node, and the largest logits of attention."""

    def __init__(self) -> None:
        self._peaks: dict[str, float] = {}

    def __call__(
        self, node: onnx.NodeProto, outputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor | None]
    ) -> None:
        for value in outputs:
            if value.is_floating_point() and value.numel():
                self._keep(node.op_type, float(value.abs().max()))
        if node.op_type == "Attention":
            # One head of one row: all at once would take gigabytes at full size.
            query, key = (value[:1, :1] for value in given[:2] if value is not None)
            self._keep("logits", float((query @ key.transpose(-1, -2)).abs().max()) * query.shape[-1] ** -0.5)

    def _keep(self, name: str, value: float) -> None:
        self._peaks[name] = max(self._peaks.get(name, 0.0), value)

    def largest(self) -> dict[str, float]:
        """Return the largest values by kind of node, in descending order."""
        ordered = sorted(self._peaks.items(), key=lambda entry: -entry[1])
        return {name: round(value, 1) for name, value in ordered[:SHOWN]}


def _feeds(graph: TorchGraph, batch: int, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    feeds = {}
    for name, kind in graph.inputs.items():
        shape = [axis.dim_value or batch for axis in kind.shape.dim]
        dtype = graph.types[kind.elem_type]
        if dtype == torch.int64:
            feeds[name] = torch.randint(0, 10, shape, device=device, generator=generator)
            continue
        value = torch.randn(shape, device=device, generator=generator)
        if name in SCALES:
            value = value.abs() * SCALES[name] + 0.1
        if name == "guidance_scale":
            value = torch.full_like(value, 7.5)
        feeds[name] = value.to(dtype)
    return feeds
