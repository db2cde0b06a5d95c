"""Check exported graphs against the torch modules they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdrt.arrays import relative_l2
from sdrt.artefacts.manifest import TensorSpec
from sdrt.errors import NumericError
from sdrt.export.components import EXAMPLE_BATCH, TorchComponent
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.onnx_export import tensor_specs
from sdrt.sampling import lms
from sdrt.sampling.noise_config import PredictionType

Array = npt.NDArray[Any]

#: Relative L2 error that an exported graph may have against its torch module, by precision. In fp32 both sides compute
#: the same operators in another order: measured up to 3.2e-4, on the demo's VAE, whose normalisation sums six million
#: values in one group. In fp16 the module computes in fp32 with the same rounded weights, while the graph rounds the
#: outputs of its operators to 11 bits (measured up to 4.2e-4, on the demo's VAE).
TOLERANCES = {"fp32": 2e-3, "fp16": 1e-2}

#: Relative L2 error that the composed step may have against the plain one, by the UNet's precision. Both run the same
#: UNet graph; the last bit of its input may differ, and the UNet and a guidance scale of up to 8 amplify that (measured
#: 2e-6 in fp32, 2e-3 in fp16). A wrong sign, order or axis gives more than 0.1.
STEP_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}


def check_graph(component: TorchComponent, path: Path, dtype: torch.dtype, precision: str) -> float:
    """Compare the graph's output in ONNX Runtime with the module's, at a batch size that the exporter did not see.

    Torch computes in fp32 whatever the precision of the weights: in fp16 a CPU takes thirty times as long for the UNet,
    minutes for a picture. The module is left in fp32.

    Args:
        component: The component; its weights have been rounded to ``dtype``.
        path: The exported graph.
        dtype: The graph's float type.
        precision: The graph's precision, which selects the tolerance.

    Returns:
        The relative L2 error of the output.

    Raises:
        NumericError: The error exceeds the tolerance.
        BackendUnavailableError: onnxruntime is not installed.
    """
    import onnx

    onnx.checker.check_model(str(path))
    # A decoded picture costs three UNet rows, and one is enough to show that the batch is free.
    batch = 1 if component.name in ("vae_encoder", "vae_decoder") else EXAMPLE_BATCH + 1
    example = component.example(batch, dtype, seed=1)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in example.items()}
    with torch.no_grad():
        expected = component.module.float()(**wide).numpy()
    (actual,) = open_cpu_session(path, prepack=False).run(
        None, {name: value.numpy() for name, value in example.items()}
    )
    error = relative_l2(np.asarray(actual), expected)
    if error > TOLERANCES[precision]:
        raise NumericError(
            f"{component.name}: the exported graph differs from torch by {error:.2g} (relative L2); "
            f"{TOLERANCES[precision]:.0e} is allowed in {precision}",
            hint="export in fp32, or report this with the checkpoint's config",
        )
    return error


def check_denoise_step(unet: Path, step: Path, prediction_type: PredictionType, precision: str) -> float:
    """Compare the composed step with the runtime's formulas around the UNet's own graph, for one picture.

    The two graphs are run one after the other, so that only one is in memory. More pictures would take gigabytes at
    full size and test nothing more: the step treats batches in the same way for every UNet.

    Args:
        unet: The UNet's graph.
        step: The composed step's graph.
        prediction_type: What the UNet predicts.
        precision: The UNet's precision, which selects the tolerance.

    Returns:
        The largest relative L2 error of the outputs.

    Raises:
        NumericError: The error exceeds the tolerance.
        BackendUnavailableError: onnxruntime is not installed.
    """
    example = _step_example(tensor_specs(step)[0], 1)
    expected = _plain_step(unet, example, prediction_type)
    actual = open_cpu_session(step, prepack=False).run(["next_latents", "next_history"], example)
    error = max(relative_l2(*pair) for pair in zip(actual, expected, strict=True))
    if error > STEP_TOLERANCES[precision]:
        raise NumericError(
            f"denoise_step: the composed graph differs from the plain step by {error:.2g} (relative L2); "
            f"{STEP_TOLERANCES[precision]:.0e} is allowed in {precision}",
            hint="report this with the checkpoint's config",
        )
    return error


def _step_example(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Return inputs for which an error of the step shows: low noise, strong guidance, a full history."""
    rng = np.random.default_rng(batch)
    ranges = {"timestep": (0, 999), "sigma": (0.5, 2), "guidance_scale": (6, 8), "lms_coefficients": (-3, -1)}
    example = {}
    for spec in inputs:
        shape = (batch, *(int(axis) for axis in spec.shape[1:]))
        values = rng.uniform(*ranges[spec.name], shape) if spec.name in ranges else rng.standard_normal(shape)
        example[spec.name] = values.astype(spec.dtype)
    scale = np.sqrt(example["sigma"] ** 2 + 1)
    example["latents"] *= scale.reshape(-1, *[1] * (example["latents"].ndim - 1))
    return example


def _plain_step(unet: Path, example: Mapping[str, Array], prediction_type: PredictionType) -> tuple[Array, Array]:
    """Compute the next latents and history by the runtime's formulas, around one run of the UNet's graph."""
    latents, sigmas = example["latents"], [float(sigma) for sigma in example["sigma"]]
    scaled = np.stack([lms.scale_model_input(x, sigma) for x, sigma in zip(latents, sigmas, strict=True)])
    dtype = example["cond_states"].dtype
    (output,) = open_cpu_session(unet, prepack=False).run(
        ["out_sample"],
        {
            "sample": np.concatenate([scaled, scaled]).astype(dtype),
            "timestep": np.concatenate([example["timestep"]] * 2),
            "encoder_hidden_states": np.concatenate([example["uncond_states"], example["cond_states"]]),
        },
    )
    uncond, cond = np.split(output.astype(np.float32), 2)
    following, histories = [], []
    for i, sigma in enumerate(sigmas):
        guided = uncond[i] + example["guidance_scale"][i] * (cond[i] - uncond[i])
        slopes = [lms.derivative(latents[i], guided, sigma, prediction_type), *example["history"][i][:-1]]
        following.append(lms.step(latents[i], slopes, example["lms_coefficients"][i].astype(np.float64)))
        histories.append(np.stack(slopes))
    return np.stack(following), np.stack(histories)
