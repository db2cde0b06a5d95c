"""Small ONNX graphs for TensorRT: one with every operator kind of the exported components, and broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdrt.artefacts.manifest import Component, TensorSpec

HALF, FLOAT, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
DTYPES = {HALF: "float16", FLOAT: "float32", INT64: "int64"}
#: Operators of the four components and denoise_step at opset 23 (tests/engines/test_exported.py counts them).
OPERATORS = {
    *("Add", "Attention", "Cast", "Concat", "Conv", "Cos", "Div", "Expand", "Gather", "Gelu", "Gemm"),
    *("GroupNormalization", "LayerNormalization", "MatMul", "Mul", "ReduceSum", "Reshape", "Resize", "Shape"),
    *("Sigmoid", "Sin", "Slice", "Split", "Sqrt", "Sub", "Transpose", "Unsqueeze"),
}

_TEXT = """
Gather table input_ids > embedded
LayerNormalization embedded one64 zero64 > normal : axis=-1
MatMul normal square > projected
Add projected zero64 > biased
Reshape biased heads_shape > split_heads
Transpose split_heads > heads : perm=0,2,1,3
Shape input_ids > rows : start=0,end=1
Concat rows mask_rest > mask_shape : axis=0
Expand mask mask_shape > whole_mask
Attention heads heads heads2 whole_mask > attended
Transpose attended > merged : perm=0,2,1,3
Reshape merged text_shape > text
Sigmoid text > gate
Mul text gate > states
"""
_UNET = """
Unsqueeze timestep last_axis > column
Mul column frequencies > angles
Sin angles > sine
Cos angles > cosine
Concat sine cosine > waves : axis=-1
Slice waves first8 last16 last_axis > back
Cast back > half : to=10
Gemm half project project_bias > time : transB=1
Unsqueeze time space_axes > shift
Conv sample kernel > wide : pads=1,1,1,1
GroupNormalization wide one64 zero64 > grouped : num_groups=8
Add grouped shift > shifted
Split shifted > value gate_in : axis=1,num_outputs=2
Gelu gate_in > gated
Mul value gated > glu
Resize glu none scales > large : mode=nearest
Conv large narrow > small : strides=2,2,pads=1,1,1,1
"""
_STEP = """
Mul sigma sigma > square_sigma
Add square_sigma one > variance
Sqrt variance > deviation
Reshape deviation image_column > column4
Cast small > prediction : to=1
Gather prediction first_index > row : axis=1
Unsqueeze row second_axis > channel
Div prediction column4 > scaled
Sub scaled channel > difference
ReduceSum difference second_axis > out : keepdims=1
"""


def every_operator(folder: Path) -> tuple[Path, Component]:
    """Write a graph with each of `OPERATORS`, batch dynamic, fp16 between fp32 ends; its attention has a kernel."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((50, 64)).astype(np.float16),
        "one64": np.ones(64, np.float16),
        "zero64": np.zeros(64, np.float16),
        "square": rng.standard_normal((64, 64)).astype(np.float16),
        "heads_shape": np.array([0, 0, 2, 32]),
        "text_shape": np.array([0, 0, 64]),
        "mask_rest": np.array([1, 8, 8]),
        "mask": np.tril(np.ones((1, 1, 8, 8), bool)),
        "last_axis": np.array([-1]),
        "frequencies": np.linspace(0, 1, 8, dtype=np.float32)[None],
        "first8": np.array([0]),
        "last16": np.array([16]),
        "project": rng.standard_normal((64, 16)).astype(np.float16),
        "project_bias": np.zeros(64, np.float16),
        "space_axes": np.array([2, 3]),
        "kernel": rng.standard_normal((64, 4, 3, 3)).astype(np.float16),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "narrow": rng.standard_normal((4, 32, 3, 3)).astype(np.float16),
        "one": np.ones(1, np.float32),
        "image_column": np.array([-1, 1, 1, 1]),
        "first_index": np.array(0),
        "second_axis": np.array([1]),
    }
    # Two tensors, since one that is query, key and value at once crashes TensorRT-RTX 1.7.
    text = _TEXT.replace("Attention", "Add heads tiny > heads2\nAttention", 1)
    weights["tiny"] = np.full(1, 1e-3, np.float16)
    inputs = {
        "input_ids": (INT64, ("batch", 8)),
        "sample": (HALF, ("batch", 4, 8, 8)),
        "timestep": (FLOAT, ("batch",)),
        "sigma": (FLOAT, ("batch",)),
    }
    outputs = {"states": (HALF, ("batch", 8, 64)), "out": (FLOAT, ("batch", 1, 8, 8))}
    return write(folder / "model.onnx", _nodes(text + _UNET + _STEP), inputs, outputs, weights)


def attention_graph(path: Path, head_size: int, dtype: int = HALF) -> tuple[Path, Component]:
    """Write one attention of two heads; TensorRT has no kernel for heads of 8, nor for fp32."""
    shape = ("batch", 2, 16, head_size)
    nodes = [helper.make_node("Attention", ["query", "key", "value"], ["out"], name="the_attention")]
    inputs = dict.fromkeys(("query", "key", "value"), (dtype, shape))
    return write(path, nodes, inputs, {"out": (dtype, shape)}, {})


def write(
    path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, Any], **more: str
) -> tuple[Path, Component]:
    """Write a graph and return its path and its part of a manifest; ``more`` are domains with version 1."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(np.asarray(weight), name) for name, weight in weights.items()],
    )
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in more.values())]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    spec = Component(
        graph=path.name,
        weights=None,
        precision="fp16",
        inputs=_specs(inputs),
        outputs=_specs(outputs),
        parameters=0,
        flops=0,
    )
    return path, spec


def _specs(values: dict[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec.model_validate({"name": name, "dtype": DTYPES.get(dtype, "float32"), "shape": shape})
        for name, (dtype, shape) in values.items()
    )


def _nodes(text: str) -> list[Any]:
    """Parse nodes from lines ``Operator inputs > outputs : attribute=value``."""
    nodes: list[Any] = []
    for line in filter(None, text.splitlines()):
        call, _, attributes = line.partition(" : ")
        operator, _, rest = call.partition(" ")
        names, _, results = rest.partition(" > ")
        given = ["" if name == "none" else name for name in names.split()]
        nodes.append(helper.make_node(operator, given, results.split(), name=f"{operator}_{len(nodes)}"))
        nodes[-1].attribute.extend(
            helper.make_attribute(key, _value(value)) for key, value in _pairs(attributes) if key
        )
    return nodes


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split ``a=1,2,b=x`` into pairs: a comma belongs to the value unless a name and "=" follow."""
    pairs: list[tuple[str, str]] = []
    for part in filter(None, text.split(",")):
        if "=" in part:
            key, _, value = part.partition("=")
            pairs.append((key, value))
        else:
            key, value = pairs.pop()
            pairs.append((key, f"{value},{part}"))
    return pairs


def _value(text: str) -> Any:
    numbers = text.split(",")
    if not all(number.lstrip("-").isdigit() for number in numbers):
        return text
    return int(text) if len(numbers) == 1 else [int(number) for number in numbers]
