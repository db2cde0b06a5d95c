"""The base class of every backend's engine: validation of inputs and outputs, and timing."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np

from sdrt.arrays import Array
from sdrt.errors import EngineError, ResourceError, UsageError

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineComponent
    from sdrt.artefacts.manifest import ComponentName, TensorSpec


class Engine(ABC):
    """One component, opened and ready to run. Not thread-safe.

    Subclasses implement ``execute``, which receives validated inputs, and ``release``.

    Args:
        name: Name of the component.
        spec: Its inputs, outputs and batch range.

    Attributes:
        last_s: Seconds of the last run; 0 before the first.
    """

    def __init__(self, name: ComponentName, spec: EngineComponent) -> None:
        self.name = name
        self.spec = spec
        self.last_s = 0.0

    def run(self, **feeds: Array) -> dict[str, Array]:
        """Run the component once.

        Args:
            feeds: An array for each input, by name, with the dtype and shape of the component's spec.

        Returns:
            An array for each output, by name; later runs do not overwrite it.

        Raises:
            UsageError: A name, dtype or shape is not the spec's, or the batch is outside the engine's range.
            ResourceError: The backend returned empty arrays, as OpenVINO does if memory runs out.
            EngineError: The shape of an output is not the spec's.
        """
        axes: dict[str, int] = {}
        checked = self._checked(feeds, axes)
        start = time.perf_counter()
        outputs = self.execute(checked)
        self.last_s = time.perf_counter() - start
        for spec in self.spec.outputs:
            self._check_output(spec, outputs[spec.name], axes)
        return outputs

    @abstractmethod
    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the backend on validated, contiguous arrays, and return arrays that later runs do not overwrite."""

    @abstractmethod
    def release(self) -> None:
        """Release everything the backend holds."""

    def close(self) -> None:
        """Close the engine, which cannot run afterwards."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, feeds: Mapping[str, Array], axes: dict[str, int]) -> dict[str, Array]:
        """Validate the feeds and return them contiguous; the lengths of named axes are added to ``axes``."""
        wanted = [spec.name for spec in self.spec.inputs]
        if feeds.keys() != set(wanted):
            given = ", ".join(sorted(feeds)) or "nothing"
            raise UsageError(f"{self.name} takes {', '.join(wanted)}; got {given}", hint="feed exactly these inputs")
        for spec in self.spec.inputs:
            self._check(spec, feeds[spec.name], axes)
        self._check_batch(axes.get("batch"))
        return {name: np.ascontiguousarray(feeds[name]) for name in wanted}

    def _check(self, spec: TensorSpec, array: Array, axes: dict[str, int]) -> None:
        """Raise UsageError unless an array fits its spec; the lengths of named axes are added to ``axes``."""
        where = f"{self.name}: {spec.name}"
        if array.dtype != spec.dtype:
            raise UsageError(f"{where} is {array.dtype}; it must be {spec.dtype}", hint=f"convert it to {spec.dtype}")
        fits = len(array.shape) == len(spec.shape) and all(
            length == (axes.setdefault(wanted, length) if isinstance(wanted, str) else wanted)
            for wanted, length in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            shape = ", ".join(f"{axis}={axes[axis]}" if axis in axes else str(axis) for axis in spec.shape)
            raise UsageError(f"{where} has shape {array.shape}; it must be ({shape})", hint="give it that shape")

    def _check_output(self, spec: TensorSpec, array: Array, axes: Mapping[str, int]) -> None:
        """Raise an error unless an output has the shape of its spec, with the inputs' lengths of named axes."""
        wanted = tuple(axes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)
        if array.shape == wanted:
            return
        if array.size == 0:
            hint = "ask for fewer pictures at once, or free memory"
            raise ResourceError(f"{self.name} gave {spec.name} without values: out of memory", hint=hint)
        message = f"{self.name} gave {spec.name} of shape {array.shape}; it must be {wanted}"
        raise EngineError(message, hint="build the engines again; if it fails again, report it")

    def _check_batch(self, batch: int | None) -> None:
        limits = self.spec.batch
        if batch is None or limits is None or limits.min <= batch <= limits.max:
            return
        message = f"{self.name} was built for batches of {limits.min} to {limits.max}; got {batch}"
        if batch > limits.max:
            raise UsageError(message, hint="ask for fewer pictures at once, or build with another --batch")
        # sdrt tune may have kept engines for one number of guided pictures only.
        hint = "build without --batch, or give --backend, which ignores the tuned engines"
        raise UsageError(message, hint=hint)
