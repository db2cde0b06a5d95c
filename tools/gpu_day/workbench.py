"""GPU, libraries and models that the parts of a GPU day run on; tests replace them by doubles."""

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

#: Backends that run plans; the one that supports more GPUs comes first.
MODULES: dict[BackendName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
UNET_CONFIG = Path("sdrt/assets/sd-v1/unet/config.json")
PYTEST = (sys.executable, "-X", "faulthandler", "-m", "pytest", "-m", "gpu", "tests/gpu", "--maxfail=5")


@dataclass(frozen=True)
class Workbench:
    """The GPU, the libraries and the models of a day.

    Attributes:
        out: Folder of findings and logs.
        store: Store of bundles and engines.
        checkpoint: Checkpoint to draw with; the demo.
        full_size: Path of the full-size checkpoint with random weights, which may be missing.
        kernels_on: Device of torch's kernels, "cuda" or "cpu".
        open_cuda: Function that opens the CUDA runtime.
        tests: Command line of the GPU tests.
        steps: Number of steps of a picture.
        calls: Number of calls of a CUDA function to time it.
        matrix: Rows of the square matrices that measure the ceiling.
        copied_bytes: Bytes of the copy that measures the ceiling.
        unet_config: Config of the UNet that diffusers runs.
        pictures: Batches, in the order in which they are run.
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
            Skipped: cuda-bindings is not installed, or the driver does not support it.
        """
        try:
            return self.open_cuda()
        except BackendUnavailableError as error:
            raise Skipped(f"{error.message}; {error.hint}") from error

    def device(self, cuda: Cuda) -> Any:
        """Return the device of the half double for a CUDA runtime."""
        return RealDevice(cuda.device_name())

    def break_device(self, cuda: Cuda) -> str:
        """Make a kernel of another CUDA runtime in this process fail on the GPU, and return that runtime's error."""
        import torch

        try:
            torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")]
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return "nothing"

    def backend(self) -> BackendName:
        """Return the backend that runs plans here.

        Raises:
            Skipped: None does; the message gives the reason for each.
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
        """Return a checkpoint's fp16 bundle, exporting it if the store has none."""
        return open_bundle(Source(checkpoint=checkpoint or self.checkpoint), self.store, precision="fp16")

    def engines(self, backend: BackendName, recipe: str = DEFAULT, checkpoint: str | None = None) -> EngineSet:
        """Return a checkpoint's plans for this GPU, building them if the store has none."""
        request = BuildRequest(backend, recipe=load_recipe(recipe, []))
        return build(self.bundle(checkpoint), request, self.store, silent)

    def stopwatch(self) -> Stopwatch:
        """Return a stopwatch for the device of torch's kernels."""
        return Stopwatch(self.kernels_on)

    def full_size_bundle(self) -> Bundle:
        """Return the full-size checkpoint's fp16 bundle.

        Raises:
            Skipped: The checkpoint does not exist.
        """
        return self.bundle(self.full_size_checkpoint())

    def full_size_checkpoint(self) -> str:
        """Return the full-size checkpoint's path.

        Raises:
            Skipped: It does not exist.
        """
        if not (self.full_size / "model_index.json").exists():
            raise Skipped(f"{self.full_size} is not there: make sd-v1-random makes it")
        return str(self.full_size)
