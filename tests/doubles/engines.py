"""Engines of a few lines, and descriptions of engines that no backend made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdrt.arrays import Array
from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import TensorSpec
from sdrt.engines.builders import ComponentJob
from sdrt.runtime.backends.base import Engine
from tests.models.tiny_bundle import HIDDEN_SIZE, LATENTS, MAX_TOKENS

Formula = Callable[[Array, Array, Array], Array]


def tensor(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    """Return the description of a tensor of shape [batch, *shape]."""
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": ("batch", *shape)})


def engine_component(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **fields: Any) -> EngineComponent:
    """Return the description of an fp32 engine of any batch size; ``fields`` replace its other fields."""
    defaults: dict[str, Any] = {
        "file": "unet/model",
        "weights": None,
        "precision": "fp32",
        "batch": None,
        "options": {},
    }
    return EngineComponent.model_validate(
        {**defaults, "inputs": tuple(inputs), "outputs": tuple(outputs), "seconds": 0, "size_bytes": 0, **fields}
    )


def unet_inputs(dtype: str = "float32") -> tuple[TensorSpec, ...]:
    """Return the descriptions of a UNet's inputs, in the sizes of the hand-written graphs."""
    states = tensor("encoder_hidden_states", MAX_TOKENS, HIDDEN_SIZE, dtype=dtype)
    return (tensor("sample", *LATENTS, dtype=dtype), tensor("timestep"), states)


def build_few_bytes(job: ComponentJob) -> EngineComponent:
    """Write an engine of a few bytes in place of a compiled one."""
    content = b"plan" * 50
    (job.folder / job.component).mkdir()
    (job.folder / job.component / "plan").write_bytes(content)
    return engine_component(
        job.spec.inputs,
        job.spec.outputs,
        file=f"{job.component}/plan",
        precision=job.precision,
        batch=job.batch,
        seconds=0.1,
        size_bytes=len(content),
        options=job.options,
    )


class FormulaUnet(Engine):
    """A UNet whose output is ``formula(sample, timestep, encoder_hidden_states)``; ``fed`` lists its inputs."""

    def __init__(self, formula: Formula, dtype: str = "float32") -> None:
        super().__init__("unet", engine_component(unet_inputs(dtype), [tensor("out_sample", *LATENTS, dtype=dtype)]))
        self.formula = formula
        self.fed: list[dict[str, Array]] = []

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.fed.append(feeds)
        output = self.formula(feeds["sample"], feeds["timestep"], feeds["encoder_hidden_states"])
        return {"out_sample": np.asarray(output, feeds["sample"].dtype)}

    def release(self) -> None:
        pass


def mix(sample: Array, timestep: Array, hidden: Array) -> Array:
    """Compute a formula that depends on the sample, the timestep and each row's prompt."""
    rows = (-1, 1, 1, 1)
    return np.asarray(0.5 * sample + (timestep / 1000).reshape(rows) + hidden.mean(axis=(1, 2)).reshape(rows))
