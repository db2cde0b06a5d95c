"""Test of a quantised engine against runs of the UNet in fp32, which the bundle keeps beside the quantised graph.

Kernels for int8 have been wrong on some processors (microsoft/onnxruntime#26324): the pictures are noise, and nothing
reports an error. An engine is therefore tested where it is built, before it is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrt.arrays import relative_l2
from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import ComponentName
from sdrt.errors import NumericError
from sdrt.sampling.lms import MAX_ORDER, derivative

Array = npt.NDArray[Any]
#: A compiled graph: takes inputs by name, returns outputs by name.
Compiled = Callable[[dict[str, Array]], Mapping[str, Array]]

VECTORS = "int8-vectors.npz"
SCHEDULER = "scheduler/scheduler_config.json"
#: Steps of the trajectory that are kept: its first, one in the middle, and the last but one.
KEPT_STEPS = (0, 4, 6)
#: Largest relative L2 error of a kept step. Quantising and bf16 together give up to 0.024 on the demo, 0.043 at full
#: size with random weights; a wrong kernel gives 1 and more.
LIMIT = 0.15


def write_vectors(graph: Path, runs: Sequence[tuple[Mapping[str, Array], Array]]) -> None:
    """Write some of a trajectory's runs beside the graph.

    Args:
        graph: The quantised UNet's file.
        runs: Inputs and fp32 output of each step, the unconditional row first.
    """
    kept = [runs[step] for step in KEPT_STEPS]
    arrays: dict[str, Any] = {name: np.stack([feeds[name] for feeds, _ in kept]) for name in kept[0][0]}
    np.savez(graph.with_name(VECTORS), **arrays, out_sample=np.stack([output for _, output in kept]))


def self_test(graph: Path, component: ComponentName, compiled: Compiled, batch: BatchRange | None) -> float:
    """Compare a compiled UNet or denoising step with the runs that are kept beside its graph.

    Args:
        graph: The quantised graph's file in its bundle.
        component: unet or denoise_step.
        compiled: Runs the component.
        batch: Rows that it takes; None takes any number.

    Returns:
        The largest relative L2 error of a step.

    Raises:
        NumericError: The error is above `LIMIT`, or not a number.
    """
    with np.load(graph.with_name(VECTORS), allow_pickle=False) as stored:
        vectors = {name: stored[name] for name in stored.files}
    worst = 0.0
    for step in range(len(vectors["out_sample"])):
        case = {name: values[step] for name, values in vectors.items()}
        expected = case.pop("out_sample")
        if component == "denoise_step":
            found, expected = _step(graph, compiled, case, expected, batch)
        else:
            rows = 1 if batch is None else -(-batch.min // 2)
            found = compiled({name: np.concatenate([values] * rows) for name, values in case.items()})["out_sample"]
            found = found[: len(expected)]
        worst = max(worst, relative_l2(found, expected))
    if worst > LIMIT:
        message = f"{component} computes int8 wrongly here: relative L2 error {worst:.2g}, limit {LIMIT}"
        raise NumericError(message, hint="use --precision bf16 or fp32 on this machine, and report the processor")
    return worst


def _step(
    graph: Path, compiled: Compiled, case: Mapping[str, Array], expected: Array, batch: BatchRange | None
) -> tuple[Array, Array]:
    """Return the derivative that the denoising step computes for a run, and the expected one.

    Guidance 1 leaves the conditional half; at sigma 1 latents are sqrt(2) times the sample.
    """
    count = 1 if batch is None else batch.min
    uncond, cond = case["encoder_hidden_states"]
    latents = case["sample"][:1] * np.float32(np.sqrt(2))
    one = np.ones(1, np.float32)
    feeds = {
        "latents": latents,
        "uncond_states": uncond[np.newaxis],
        "cond_states": cond[np.newaxis],
        "timestep": case["timestep"][:1],
        "sigma": one,
        "guidance_scale": one,
        "lms_coefficients": np.zeros((1, MAX_ORDER), np.float32),
        "history": np.zeros((1, MAX_ORDER, *latents.shape[1:]), np.float32),
    }
    outputs = compiled({name: np.concatenate([values] * count) for name, values in feeds.items()})
    config = json.loads((graph.parent.parent / SCHEDULER).read_bytes())
    wanted = derivative(latents, expected[1:], 1.0, config.get("prediction_type", "epsilon"))
    return outputs["next_history"][:1, 0], wanted
