"""What the parts of a GPU day run on; tests put doubles in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BackendName, EngineSet
from sdrt.artefacts.store import Store
from sdrt.engines.build import build
from sdrt.engines.recipe import DEFAULT, load_recipe
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError
from sdrt.libraries.cuda import Cuda
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from sdrt.progress import silent
from sdrt.runtime.backends.registry import available
from tools.gpu_day import FULL_SIZE
from tools.gpu_day.findings import Skipped
from tools.gpu_day.half_double import RealDevice
from tools.gpu_day.stopwatch import Stopwatch

#: The libraries that run plans, the one that serves more GPUs first.
MODULES: dict[BackendName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
UNET_CONFIG = Path("sdrt/assets/sd-v1/unet/config.json")
PYTEST = (sys.executable, "-X", "faulthandler", "-m", "pytest", "-m", "gpu", "tests/gpu", "--maxfail=5")


@dataclass(frozen=True)
class Workbench:
    """The GPU, the libraries and the models of a day.

    Attributes:
        out: Where findings and logs go.
        store: Where bundles and engines are kept.
        checkpoint: What is drawn; the demo.
        full_size: The full-size checkpoint with random weights, which may be missing.
        kernels_on: Where torch computes, "cuda" or "cpu".
        open_cuda: Opens the CUDA runtime.
        tests: How the GPU tests are run.
        steps: Steps of a picture.
        calls: How often a CUDA call is made to time it.
        matrix: Rows of the matrices that are multiplied to find the ceiling.
        copied_bytes: What is copied to find it.
        unet_config: Of the UNet that diffusers runs.
        pictures: Batches in the order in which they are run.
    """

    out: Path
    store: Store
    checkpoint: str = "demo"
    full_size: Path = FULL_SIZE
    kernels_on: str = "cuda"
    open_cuda: Callable[[], Cuda] = field(default=lambda: Cuda.open("trt"))
    tests: tuple[str, ...] = PYTEST
    steps: int = 50
    calls: int = 1000
    matrix: int = 8192
    copied_bytes: int = 1 << 31
    unet_config: Path = UNET_CONFIG
    pictures: tuple[int, ...] = (1, 3, 1, 4)

    def cuda(self) -> Cuda:
        """Return the CUDA runtime.

        Raises:
            Skipped: cuda-bindings is not installed, or the driver does not serve it.
        """
        try:
            return self.open_cuda()
        except BackendUnavailableError as error:
            raise Skipped(f"{error.message}; {error.hint}") from error

    def device(self, cuda: Cuda) -> Any:
        """Return what the half double asks of the runtime beside its functions."""
        return RealDevice(cuda.device_name())

    def break_device(self, cuda: Cuda) -> str:
        """Have a kernel of another CUDA runtime in this process fail on the GPU; returns what that runtime said."""
        import torch

        try:
            torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")]
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return "nothing"

    def backend(self) -> BackendName:
        """Return the library that runs plans here.

        Raises:
            Skipped: None does; says why of each.
        """
        reasons = []
        for name in MODULES:
            try:
                available(name)
            except BackendUnavailableError as error:
                reasons.append(f"{name}: {error.message}")
            else:
                return name
        raise Skipped("; ".join(reasons))

    def library(self, backend: BackendName) -> Any:
        """Return the module of a backend."""
        return import_module(MODULES[backend])

    def bundle(self, checkpoint: str | None = None) -> Bundle:
        """Return a checkpoint's fp16 bundle, exported where the store has none."""
        return open_bundle(Source(checkpoint=checkpoint or self.checkpoint), self.store, precision="fp16")

    def engines(self, backend: BackendName, recipe: str = DEFAULT, checkpoint: str | None = None) -> EngineSet:
        """Return a checkpoint's plans for this GPU, built where the store has none."""
        request = BuildRequest(backend, recipe=load_recipe(recipe, []))
        return build(self.bundle(checkpoint), request, self.store, silent)

    def stopwatch(self) -> Stopwatch:
        """Return what measures times where torch computes."""
        return Stopwatch(self.kernels_on)

    def full_size_bundle(self) -> Bundle:
        """Return the full-size checkpoint's fp16 bundle.

        Raises:
            Skipped: The checkpoint was not made.
        """
        return self.bundle(self.full_size_checkpoint())

    def full_size_checkpoint(self) -> str:
        """Return the full-size checkpoint's path.

        Raises:
            Skipped: It was not made.
        """
        if not (self.full_size / "model_index.json").exists():
            raise Skipped(f"{self.full_size} is not there: make sd-v1-random makes it")
        return str(self.full_size)
