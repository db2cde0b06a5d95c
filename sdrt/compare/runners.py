"""Polygraphy runners: the reference's components, and a candidate's, whatever backend runs it."""

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
    """What is compared with the reference: an engine set, or the graphs of a bundle as ONNX Runtime runs them.

    Attributes:
        backend: What runs it.
        precision: How it computes; a component may differ, see ``parts``.
        model: The numbers that its manifest gives the runtime.
        parts: Its components.
        open: Opens one of them.
        checkpoint_digest: Of the checkpoint that it was made from.
    """

    backend: str
    precision: Precision
    model: ModelRecord
    parts: Mapping[ComponentName, EngineComponent]
    open: Callable[[ComponentName], Engine]
    checkpoint_digest: str


def candidate(source: EngineSet | Bundle, *, threads: int | None = None) -> Candidate:
    """An opened engine set or bundle as a candidate; nothing is loaded yet.

    Args:
        source: A bundle's graphs are run unoptimised by ONNX Runtime on the CPU, which computes fp16 in fp32.
        threads: Threads each component may use on the CPU; None is all that this process may use.
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
        """Inputs as they will come, so that nothing is loaded to tell and Polygraphy converts nothing."""
        return _metadata({name: (str(array.dtype), array.shape[1:]) for name, array in self.feeds.items()})

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        """Run the module, or give what it gave for the same inputs."""
        start = time.perf_counter()
        outputs = self.reference.run(self.component, feed_dict, self.precision)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)

    def deactivate_impl(self) -> None:
        """Let go of the module, so that the candidate has its memory."""
        self.reference.release()


class EngineRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """A candidate's component. It takes and gives float32; the engine's own types are brought to that.

    Latents come unscaled by the checkpoint's factor. A candidate whose manifest has another factor unscales them by
    that, as the runtime would.
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
        """The engine's inputs, as float32 where they are floating."""
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
            # What fp16 cannot hold becomes Inf, and shows as such in the outputs.
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
    """Polygraphy's description of inputs whose first axis is the batch."""
    metadata = TensorMetadata()
    for name, (dtype, shape) in inputs.items():
        metadata.add(name, dtype=np.dtype(dtype), shape=[None, *shape])
    return metadata
