"""A UNet that is a formula of what it is fed, as an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import TensorSpec
from sdrt.runtime.backends.base import Engine

Array = npt.NDArray[Any]
SHAPE = (4, 8, 8)


def _tensor(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=("batch", *shape))


class FormulaUnet(Engine):
    """Its output is ``formula(sample, timestep, encoder_hidden_states)``; keeps what it was fed."""

    def __init__(self, formula: Callable[[Array, Array, Array], Array]) -> None:
        spec = EngineComponent(
            file="unet/model",
            weights=None,
            precision="fp32",
            inputs=(_tensor("sample", *SHAPE), _tensor("timestep"), _tensor("encoder_hidden_states", 7, 5)),
            outputs=(_tensor("out_sample", *SHAPE),),
            batch=None,
            seconds=0,
            size_bytes=0,
            options={},
        )
        super().__init__("unet", spec)
        self.formula = formula
        self.fed: list[dict[str, Array]] = []

    @classmethod
    def mixing(cls) -> FormulaUnet:
        """Depends on everything: the sample, the timestep and each row's prompt."""
        rows = (-1, 1, 1, 1)
        return cls(lambda x, t, h: 0.5 * x + (t / 1000).reshape(rows) + h.mean(axis=(1, 2)).reshape(rows))

    @classmethod
    def always(cls, output: Array) -> FormulaUnet:
        """Gives one output, whatever it is fed."""
        return cls(lambda x, _t, _h: np.broadcast_to(output, x.shape))

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Compute the formula."""
        self.fed.append(feeds)
        return {"out_sample": np.asarray(self.formula(*feeds.values()), np.float32)}

    def release(self) -> None:
        """Hold nothing."""
