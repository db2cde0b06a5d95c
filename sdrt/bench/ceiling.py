"""The machine's ceiling: a large matrix product in each precision, and a large copy, by the fastest library here."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

#: Rows of the square matrices: large enough to be limited by arithmetic, small enough to take a tenth of a second.
SIDE, GPU_SIDE = 1536, 8192
#: Size of the copied array, larger than any cache.
COPY_BYTES = 256 << 20
#: Number of calls, of which the fastest counts: disturbances only ever slow a call.
TRIES = 3

Product = Callable[[], object]
Maker = Callable[[str, int, str], Product | None]


class MachineCeiling:
    """Matrix products and a copy, prepared once and measured any number of times.

    Args:
        threads: Number of CPU threads.
        device: cpu or cuda.
    """

    def __init__(self, threads: int, device: str) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._threads, self._device = threads, device
        self._products: dict[str, list[tuple[str, Product]]] = {}
        self._copy = self._make_copy()

    def measure(self, precisions: tuple[str, ...]) -> dict[str, Any]:
        """Measure the ceiling.

        Args:
            precisions: Precisions of the products; those that no library here supports are left out.

        Returns:
            ``products``: GFLOP/s and library by precision; ``bytes_a_second``: bytes read and written by the copy per
            second.
        """
        found = {}
        for precision in precisions:
            rates = [(self._gflops(product), library) for library, product in self._made(precision)]
            if rates:
                gflops, library = max(rates)
                found[precision] = {"gflops": gflops, "library": library}
        return {"products": found, "bytes_a_second": 2 * COPY_BYTES / _best(self._copy)}

    def _made(self, precision: str) -> list[tuple[str, Product]]:
        if precision not in self._products:
            makers: list[tuple[str, Maker]] = [("torch", _torch)]
            if self._device == "cpu":
                makers += [("openvino", _openvino), ("numpy", _numpy)]
            made = []
            for library, make in makers:
                with contextlib.suppress(ImportError):
                    product = make(precision, self._threads, self._device)
                    if product is not None:
                        product()
                        made.append((library, product))
            self._products[precision] = made
        return self._products[precision]

    def _gflops(self, product: Product) -> float:
        side = GPU_SIDE if self._device == "cuda" else SIDE
        return 2 * side**3 / _best(product) / 1e9

    def _make_copy(self) -> Product:
        with contextlib.suppress(ImportError):
            torch = import_module("torch")
            torch.set_num_threads(self._threads)
            source = torch.ones(COPY_BYTES // 4, device=self._device)
            target = torch.empty_like(source)
            return _finished(torch, self._device, lambda: target.copy_(source))
        array = np.ones(COPY_BYTES // 4, np.float32)
        copied = np.empty_like(array)
        return lambda: np.copyto(copied, array)


def _best(function: Product) -> float:
    """Return the seconds of the fastest of `TRIES` calls."""
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _finished(torch: Any, device: str, function: Product) -> Product:
    """Wrap a function so that on a GPU it returns only after the work has finished."""
    if device != "cuda":
        return function

    def call() -> None:
        function()
        torch.cuda.synchronize()

    return call


def _torch(precision: str, threads: int, device: str) -> Product | None:
    torch = import_module("torch")
    types = {"fp32": torch.float32, "bf16": torch.bfloat16} | ({"fp16": torch.float16} if device == "cuda" else {})
    torch.set_num_threads(threads)
    side = GPU_SIDE if device == "cuda" else SIDE
    if precision == "int8":
        first, second = (torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return _finished(torch, device, lambda: torch._int_mm(first, second))
    if precision not in types:
        return None
    left = torch.randn(side, side, device=device).to(types[precision])
    right = torch.randn(side, side, device=device).to(types[precision])
    return _finished(torch, device, lambda: left @ right)


def _openvino(precision: str, threads: int, device: str) -> Product | None:
    """Return a product with a constant matrix, as in a fully connected layer: OpenVINO packs it in advance."""
    from sdrt.libraries.openvino import INFERENCE_PRECISION, core, cpu_config, load_library

    if precision not in ("fp32", "bf16") or precision not in INFERENCE_PRECISION:
        return None
    openvino = load_library()
    operators = import_module("openvino.opset13")
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    parameter = operators.parameter([SIDE, SIDE], np.float32)
    model = openvino.Model([operators.matmul(parameter, operators.constant(right), False, True)], [parameter])
    config = cpu_config("bf16" if precision == "bf16" else "fp32", threads)
    request = core().compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)


def _numpy(precision: str, threads: int, device: str) -> Product | None:
    if precision != "fp32":
        return None
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    return lambda: left @ right
