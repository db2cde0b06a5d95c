"""Polygraphy runners that compute nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from sdrt.arrays import Array


class Canned(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """Gives the same outputs for whatever it is fed."""

    def __init__(self, name: str, **outputs: Array) -> None:
        super().__init__(name=name)
        self.outputs = outputs

    def get_input_metadata_impl(self) -> TensorMetadata:
        return TensorMetadata().add("x", dtype=np.dtype(np.float32), shape=[None, 3])

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        assert feed_dict["x"] is not None
        self.inference_time = 0.0
        return OrderedDict(self.outputs)
