"""ONNX Runtime's GPU providers on a real GPU. They need onnxruntime-gpu in place of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrt import Pipeline
from sdrt.artefacts.engine_set import Provider
from sdrt.artefacts.store import Store
from sdrt.machine.packages import distribution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        distribution("onnxruntime-gpu") is None,
        reason="onnxruntime-gpu is not installed: GPU_ORT=1 make test-gpu installs it in an environment of its own",
    ),
]

#: Relative to the largest latent: cuDNN adds in another order and, from sm80 on, multiplies in TF32 with 11 bits.
TOLERANCE = 5e-2


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_pictures_are_the_cpus(tiny_path: Path, store: Store, provider: Provider) -> None:
    latents = {}
    name: Provider
    for name in (provider, "cpu"):
        with Pipeline.load(str(tiny_path), backend="onnxruntime", provider=name, store=store.root) as pipeline:
            latents[name] = pipeline("a red circle", num_inference_steps=5, seed=3).latents
    difference = np.abs(latents[provider] - latents["cpu"]).max()
    assert difference <= TOLERANCE * np.abs(latents["cpu"]).max()
    assert difference > 0, "it ran on the CPU"
