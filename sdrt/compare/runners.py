"""Polygraphy runners of the reference's components, and of a candidate's on any backend."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from sdrt.arrays import Array
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent, EngineSet
from sdrt.artefacts.manifest import ComponentName, ModelRecord, Precision, TensorSpec
from sdrt.machine.cpu import usable_cpus
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.backends.opening import open_engine

if TYPE_CHECKING:
    from sdrt.compare.reference import Reference


@dataclass(frozen=True)
class Candidate:
    """An engine set, or a bundle's graphs run by ONNX Runtime, to be compared with the reference.

    Attributes:
        backend: Name of the backend that runs it.
        precision: Its precision; a component may have another, see ``parts``.
        model: Model record of its manifest.
        parts: Its components, by name.
        open: Function that opens a component.
        checkpoint_digest: Digest of the checkpoint that it was made from.
    """

    backend: str
    precision: Precision
    model: ModelRecord
    parts: Mapping[ComponentName, EngineComponent]
    open: Callable[[ComponentName], Engine]
    checkpoint_digest: str


def candidate(source: EngineSet | Bundle, *, threads: int | None = None) -> Candidate:
    """Return an opened engine set or bundle as a candidate; nothing is loaded yet.

    Args:
        source: Engines, or a bundle, whose graphs ONNX Runtime runs unoptimised on the CPU; it computes fp16 in fp32.
        threads: Number of CPU threads of each component; None is all that this process may use.
    """
    manifest = source.manifest
    if isinstance(source, EngineSet):
        return Candidate(
            source.manifest.backend,
            manifest.precision,
            manifest.model,
            source.manifest.components,
            lambda name: open_engine(source, name, threads=threads),
            manifest.checkpoint.digest,
        )
    parts = {
        name: EngineComponent(
            file=part.graph,
            weights=part.weights,
            precision=part.precision,
            inputs=part.inputs,
            outputs=part.outputs,
            batch=None,
            seconds=0,
            size_bytes=source.manifest.files[part.graph].size_bytes,
            options={},
        )
        for name, part in source.manifest.components.items()
    }

    def opened(name: ComponentName) -> Engine:
        from sdrt.runtime.backends.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(name, parts[name], source.path, threads or usable_cpus())

    return Candidate("onnxruntime", manifest.precision, manifest.model, parts, opened, manifest.checkpoint.digest)


class TorchRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """The reference's component, in fp32 or, to show what half precision costs, fp16."""

    def __init__(
        self,
        reference: Reference,
        component: ComponentName,
        feeds: Mapping[str, Array],
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(name=f"torch {precision}", prefix="torch")
        self.reference = reference
        self.component = component
        self.feeds = feeds
        self.precision = precision

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Describe the inputs as they are fed, so that no module is loaded and Polygraphy converts nothing."""
        return _metadata({name: (str(array.dtype), array.shape[1:]) for name, array in self.feeds.items()})

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        """Run the module, or return its cached outputs of the same inputs."""
        start = time.perf_counter()
        outputs = self.reference.run(self.component, feed_dict, self.precision)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)

    def deactivate_impl(self) -> None:
        """Release the module, so that its memory is free for the candidate."""
        self.reference.release()


class EngineRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """A candidate's component. Inputs and outputs are float32 and cast to and from the engine's dtypes.

    Latents arrive divided by the checkpoint's scaling factor. If the candidate's manifest has another factor they are
    divided by that instead, as the runtime would.
    """

    def __init__(self, made: Candidate, component: ComponentName, scaling_factor: float) -> None:
        super().__init__(name=f"{made.backend} {made.parts[component].precision}", prefix="engine")
        self.candidate = made
        self.component = component
        self.scaling_factor = scaling_factor
        self.engine: Engine | None = None

    def activate_impl(self) -> None:
        """Open the engine."""
        self.engine = self.candidate.open(self.component)

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Describe the engine's inputs; floating ones as float32."""
        specs = self.candidate.parts[self.component].inputs
        return _metadata({spec.name: (_plain(spec), spec.shape[1:]) for spec in specs})

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        """Run the engine."""
        if self.engine is None:
            raise RuntimeError("the runner is not active")
        feeds = dict(feed_dict)
        factor = self.scaling_factor / self.candidate.model.scaling_factor
        if self.component == "vae_decoder" and factor != 1:
            feeds["latent_sample"] = feeds["latent_sample"] * np.float32(factor)
        dtypes = {spec.name: spec.dtype for spec in self.candidate.parts[self.component].inputs}
        with np.errstate(over="ignore"):
            # Values out of fp16's range become Inf, which the outputs then show.
            feeds = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
        outputs = self.engine.run(**feeds)
        self.inference_time = self.engine.last_s
        return OrderedDict((name, array.astype(np.float32, copy=False)) for name, array in outputs.items())

    def deactivate_impl(self) -> None:
        """Close the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _plain(spec: TensorSpec) -> str:
    return "int64" if spec.dtype == "int64" else "float32"


def _metadata(inputs: Mapping[str, tuple[str, tuple[Any, ...]]]) -> TensorMetadata:
    """Return Polygraphy's description of inputs whose first axis is the batch."""
    metadata = TensorMetadata()
    for name, (dtype, shape) in inputs.items():
        metadata.add(name, dtype=np.dtype(dtype), shape=[None, *shape])
    return metadata
