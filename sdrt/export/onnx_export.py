"""Trace one component to ONNX by torch's dynamo exporter, and check the graph's inputs and outputs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from sdrt.artefacts.manifest import TensorSpec
from sdrt.errors import BundleError
from sdrt.export.components import EXAMPLE_BATCH, TorchComponent
from sdrt.graphs.values import SCOPES, axes

MAX_BATCH = 16
DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "INT64": "int64"}

#: Exporter metadata that a graph keeps: the modules that each node comes from. The rest (stack traces, source paths)
#: differs between machines, and equal inputs must give equal bytes.
KEPT_METADATA = (SCOPES,)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporter and the tracer, and what they print, within the block."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch._dynamo", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_graph(component: TorchComponent, path: Path, dtype: torch.dtype, opset: int) -> None:
    """Write a component's graph, with a dynamic batch axis, to ``path`` and its weights to ``path``.data.

    Args:
        component: The component; its module is already in ``dtype``.
        path: The .onnx file to write, in an existing folder.
        dtype: float32 or float16.
        opset: ONNX opset; 23 keeps attention and group normalisation as single operators.

    Raises:
        BundleError: The exporter made the batch axis constant, or a name or shape differs from the component's.
    """
    import onnx_ir

    example = component.example(EXAMPLE_BATCH, dtype)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            component.module,
            (),
            kwargs=example,
            dynamo=True,
            opset_version=opset,
            input_names=list(example),
            output_names=[component.output[0]],
            dynamic_shapes={name: {0: batch} for name in example},
            verbose=False,
        )
    if program is None:
        raise BundleError(
            f"torch.onnx.export returned no graph for {component.name}", hint="report this with the checkpoint's config"
        )
    model = program.model
    strip_metadata(model)
    _name_batch_axis(model)
    onnx_ir.save(model, path, external_data=f"{path.name}.data")
    _check_contract(component, path)


def strip_metadata(model: object) -> None:
    """Remove what differs between machines from an onnx_ir.Model: stack traces, paths, the exporter's metadata."""
    import onnx_ir

    if not isinstance(model, onnx_ir.Model):
        raise TypeError(f"expected an onnx_ir.Model, not {type(model).__name__}")
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            node.doc_string = None
            for key in [key for key in node.metadata_props if key not in KEPT_METADATA]:
                del node.metadata_props[key]
            values.extend(node.outputs)
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None


def _name_batch_axis(model: object) -> None:
    """Rename the first axis of the outputs to "batch" where the exporter numbered it (s0, s1, ...)."""
    import onnx_ir

    if not isinstance(model, onnx_ir.Model):
        raise TypeError(f"expected an onnx_ir.Model, not {type(model).__name__}")
    for value in model.graph.outputs:
        if value.shape is not None and not isinstance(value.shape[0], int):
            value.shape = onnx_ir.Shape(["batch", *value.shape.dims[1:]])


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of an ONNX file, without reading its weights."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
        return TensorSpec.model_validate({"name": value.name, "dtype": DTYPES.get(dtype, dtype), "shape": axes(value)})

    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output))


def _check_contract(component: TorchComponent, path: Path) -> None:
    """Raise BundleError unless every input and output has the contract's shape.

    torch.export makes dynamic axes constant without a warning.
    """
    inputs, outputs = tensor_specs(path)
    wanted = {name: ("batch", *shape) for name, (_, shape) in component.inputs.items()}
    wanted[component.output[0]] = ("batch", *component.output[1])
    found = {spec.name: spec.shape for spec in (*inputs, *outputs)}
    for name, shape in wanted.items():
        if found.get(name) != shape:
            raise BundleError(
                f"{component.name}: the exported {name} has shape {found.get(name)}; expected {shape}",
                hint="check the checkpoint's config; report this if the checkpoint is an unchanged SD v1",
            )
