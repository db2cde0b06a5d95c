"""Layers, attentions, profiles and sizes: of a bundle from its graphs, of an engine set from its manifest."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineManifest
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, TensorSpec, read_manifest
from sdrt.errors import ArtefactError
from sdrt.inspect.graph import graph_tree, load_graph

#: ONNX's data types -> names of precisions.
PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


def examine(folder: Path) -> dict[str, Any]:
    """Return the contents of a bundle or an engine set as JSON values, except ``tree`` of a bundle's components.

    An engine set's plans are neither opened nor hashed, so it need not be trusted.

    Raises:
        ArtefactError: The folder is neither a bundle nor an engine set.
        BackendUnavailableError: onnx, which reads a bundle's graphs, is not installed.
    """
    if "backend" in json.loads(read_manifest(folder, ArtefactError)):
        return _engines(folder, EngineManifest.of(folder))
    return _bundle(Bundle.open(folder))


def _engines(folder: Path, manifest: EngineManifest) -> dict[str, Any]:
    components = {}
    for name, component in manifest.components.items():
        layers = component.layers
        components[name] = {
            "precision": component.precision,
            "size_bytes": component.size_bytes,
            "seconds": component.seconds,
            "peak_memory_bytes": component.peak_memory_bytes,
            "inputs": _tensors(component.inputs),
            "outputs": _tensors(component.outputs),
            "profile": component.batch.model_dump() if component.batch else None,
            "layers": layers.kinds if layers else None,
            "attentions": [attention.model_dump() for attention in layers.attentions] if layers else None,
        }
    return {
        "kind": "engines",
        "path": str(folder),
        "backend": manifest.backend,
        "checkpoint": manifest.checkpoint.name,
        "checkpoint_digest": manifest.checkpoint.digest,
        "precision": manifest.precision,
        "token_merging": manifest.token_merging,
        "guidance_scale": manifest.model.guidance_scale,
        "versions": manifest.versions,
        "host": manifest.host,
        "components": components,
    }


def _bundle(bundle: Bundle) -> dict[str, Any]:
    components = {name: _graph(bundle, name) for name in bundle.manifest.components}
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "checkpoint": bundle.manifest.checkpoint.name,
        "checkpoint_digest": bundle.manifest.checkpoint.digest,
        "precision": bundle.manifest.precision,
        "token_merging": bundle.manifest.token_merging,
        "guidance_scale": bundle.manifest.model.guidance_scale,
        "opset": bundle.manifest.opset,
        "versions": bundle.manifest.versions,
        "components": components,
    }


def _graph(bundle: Bundle, name: ComponentName) -> dict[str, Any]:
    """Return a component's facts, among them the number of its operators by kind and output type; reads no weights."""
    component = bundle.manifest.components[name]
    graph = load_graph(bundle.graph(name))
    from onnx import TensorProto

    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph.node:
        dtype = TensorProto.DataType.Name(types.get(node.output[0], TensorProto.UNDEFINED))
        kinds[node.op_type][PRECISIONS.get(dtype, dtype.lower())] += 1
    files = {component.graph, component.weights} - {None}
    return {
        "precision": component.precision,
        "size_bytes": sum(bundle.manifest.files[file].size_bytes for file in files if file is not None),
        "parameters": component.parameters,
        "flops": component.flops,
        "inputs": _tensors(component.inputs),
        "outputs": _tensors(component.outputs),
        "layers": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
        "attentions": [
            {"name": node.name, "inputs": [name for name in node.input if name]}
            for node in graph.node
            if node.op_type == "Attention"
        ],
        # The denoising step contains the UNet, which has a tree of its own.
        "tree": graph_tree(name, graph) if name in COMPONENTS else None,
    }


def _tensors(specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Format each tensor as ``float16 [batch,4,64,64]``."""
    return {spec.name: f"{spec.dtype} [{','.join(map(str, spec.shape))}]" for spec in specs}
