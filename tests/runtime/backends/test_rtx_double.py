"""The double of TensorRT-RTX compiles kernels as the manual says, and detects misuse of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrt.artefacts.bundle import Bundle
from tests.doubles.cuda_double import trt as double
from tests.doubles.cuda_double.bench import Bench
from tests.doubles.cuda_double.memory import Misuse
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import TensorRtDouble


class Kernels:
    """A context of TensorRT-RTX with a cache of kernels, and one picture's output of each run."""

    def __init__(self, graph: Path, folder: Path, strategy: str) -> None:
        self.bench = Bench(graph, folder, rtx=True)
        config = self.bench.engine.create_runtime_config()
        assert isinstance(config, double.RtxRuntimeConfig)
        strategies = double.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies[strategy]
        self.cache = config.create_runtime_cache()
        assert config.set_runtime_cache(self.cache)
        self.bench.context = lambda **_: self.bench.engine.create_execution_context(config)  # type: ignore[method-assign]
        config.set_execution_context_allocation_strategy(double.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.context = self.bench.ready()
        self.bench.wait()
        self.bench.bytes_at(self.bench.addresses["latent_sample"], 1024).view(np.float32)[:] = 1

    def run(self) -> bytes:
        assert self.context.execute_async_v3(int(self.bench.stream))
        self.bench.wait()
        return bytes(self.bench.bytes_at(self.bench.addresses["sample"], 3 * 256 * 4))


@pytest.mark.parametrize(
    ("strategy", "compiled", "changes"), [("LAZY", 1, True), ("EAGER", 1, False), ("NONE", 0, False)]
)
def test_kernels_compiled_lazily_change_the_numbers(
    hand_bundle: Bundle, tmp_path: Path, strategy: str, compiled: int, changes: bool
) -> None:
    kernels = Kernels(hand_bundle.graph("vae_decoder"), tmp_path, strategy)
    first, second, third = kernels.run(), kernels.run(), kernels.run()
    assert (first != second) == changes
    assert second == third
    assert len(kernels.bench.trt.compiled) == compiled


def test_kernels_outlived_by_a_context(hand_bundle: Bundle, tmp_path: Path) -> None:
    kernels = Kernels(hand_bundle.graph("vae_decoder"), tmp_path, "EAGER")
    del kernels.cache
    with pytest.raises(Misuse, match="outlives the cache"):
        kernels.run()


def test_kernels_of_another_gpu_are_refused_and_garbage_is_misuse(hand_bundle: Bundle, tmp_path: Path) -> None:
    kernels = Kernels(hand_bundle.graph("vae_decoder"), tmp_path, "EAGER")
    kernels.run()
    written = kernels.cache.serialize()
    assert kernels.cache.deserialize(written)
    assert not kernels.cache.deserialize(written.replace(b"3090", b"4090"))
    with pytest.raises(Misuse, match="did not write"):
        kernels.cache.deserialize(written[:-1])


def test_kernels_without_a_cuda_context() -> None:
    trt = TensorRtDouble(CudaDouble(), rtx=True)
    with pytest.raises(Misuse, match="without a CUDA context"):
        double.RtxRuntimeConfig(trt).create_runtime_cache().deserialize(b"{}")
