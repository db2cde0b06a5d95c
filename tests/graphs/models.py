"""Models to be refused: ONNX files built field by field, sound ones changed in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdrt.graphs.structure import Expected

Change = Callable[[onnx.ModelProto], object]

#: The manifest's description of `sound`.
EXPECTED = Expected(
    inputs=(("sample", "float32", ("batch", 4)),),
    outputs=(("out_sample", "float32", ("batch", 4)),),
    weights="model.onnx.data",
    opset=23,
)


def sound() -> onnx.ModelProto:
    """Build two products of a vector with a matrix, one of which is stored beside the graph."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["sample", "near"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "far"], ["out_sample"]),
        ],
        "small",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ("batch", 4))],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "near")],
    )
    far = graph.initializer.add(name="far", data_type=TensorProto.FLOAT, dims=[4, 4])
    far.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": "64"}.items():
        far.external_data.add(key=key, value=value)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def write(folder: Path, change: Change | None = None) -> Path:
    """Write the sound model, changed, and its 64 bytes of weights; return the graph's path."""
    model = sound()
    if change is not None:
        change(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx.data").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def far(model: onnx.ModelProto) -> onnx.TensorProto:
    """Return the tensor that is stored beside the graph."""
    tensor: onnx.TensorProto = model.graph.initializer[1]
    return tensor


def external(**values: str | None) -> Change:
    """Change the stated location of the tensor beside the graph; None omits a key."""

    def change(model: onnx.ModelProto) -> None:
        tensor = far(model)
        entries = {entry.key: entry.value for entry in tensor.external_data} | values
        del tensor.external_data[:]
        for key, value in entries.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    return change
