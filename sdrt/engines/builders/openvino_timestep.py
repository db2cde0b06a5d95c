"""The timestep's sines from a timestep in fp32, in a model that OpenVINO computes in bf16.

Left alone, OpenVINO rounds the timestep itself to bf16, which holds 8 bits: 958.4 becomes 960, and its product with the
largest frequency is wrong by up to two radians, in every step and for the whole picture. A node can be told to keep
its precision by an attribute that Python cannot make but the IR format can state; and its inputs can be exchanged. So
the product is read from an IR of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdrt.runtime.backends.openvino import core, load_library

if TYPE_CHECKING:
    import openvino

_KEPT = '<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:dynamic"/></rt_info>'
_ROW, _TABLE = "<dim>-1</dim>", "<dim>-1</dim><dim>-1</dim>"
#: Timesteps [batch] as a column (a Reshape: what becomes of an Unsqueeze loses the attribute) times frequencies [1, n].
_PRODUCT = f"""<?xml version="1.0"?>
<net name="timestep" version="11">
<layers>
<layer id="0" name="timestep" type="Parameter" version="opset1"><data shape="?" element_type="f32"/>
  <output><port id="0" precision="FP32">{_ROW}</port></output></layer>
<layer id="1" name="shape" type="Parameter" version="opset1"><data shape="2" element_type="i64"/>
  <output><port id="0" precision="I64"><dim>2</dim></port></output></layer>
<layer id="2" name="frequencies" type="Parameter" version="opset1"><data shape="?,?" element_type="f32"/>
  <output><port id="0" precision="FP32">{_TABLE}</port></output></layer>
<layer id="3" name="column" type="Reshape" version="opset1"><data special_zero="false"/>{_KEPT}
  <input><port id="0" precision="FP32">{_ROW}</port><port id="1" precision="I64"><dim>2</dim></port></input>
  <output><port id="2" precision="FP32">{_TABLE}</port></output></layer>
<layer id="4" name="angles" type="Multiply" version="opset1"><data auto_broadcast="numpy"/>{_KEPT}
  <input><port id="0" precision="FP32">{_TABLE}</port><port id="1" precision="FP32">{_TABLE}</port></input>
  <output><port id="2" precision="FP32">{_TABLE}</port></output></layer>
<layer id="5" name="result" type="Result" version="opset1">
  <input><port id="0" precision="FP32">{_TABLE}</port></input></layer>
</layers>
<edges>
<edge from-layer="0" from-port="0" to-layer="3" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="3" to-port="1"/>
<edge from-layer="3" from-port="2" to-layer="4" to-port="0"/>
<edge from-layer="2" from-port="0" to-layer="4" to-port="1"/>
<edge from-layer="4" from-port="2" to-layer="5" to-port="0"/>
</edges>
</net>"""


def keep_timestep(model: openvino.Model) -> int:
    """Let sines and cosines of a timestep times frequencies be of angles in fp32.

    Args:
        model: As read from an exported graph: a parameter [batch] through Unsqueeze and Multiply by constants [1, n].

    Returns:
        How many such products there are: one in a UNet, none in what knows no timestep.
    """
    found = 0
    for node in model.get_ordered_ops():
        readers = list(node.output(0).get_target_inputs()) if node.get_output_size() else []
        if node.get_type_name() == "Multiply" and any(_kind(one.get_node()) == "Sin" for one in readers):
            column, frequencies = node.input_value(0), node.input_value(1)
            if _kind(column.get_node()) == "Unsqueeze" and _kind(frequencies.get_node()) == "Constant":
                angles = _kept_product(column.get_node().input_value(0), frequencies)
                for reader in readers:
                    reader.replace_source_output(angles)
                found += 1
    model.validate_nodes_and_infer_types()
    return found


def _kind(node: openvino.Node) -> str:
    return str(node.get_type_name())


def _kept_product(timestep: openvino.Output, frequencies: openvino.Output) -> openvino.Output:
    """Angles [batch, n] that stay in fp32 whatever the model is computed in."""
    parts = {node.get_friendly_name(): node for node in core().read_model(_PRODUCT.encode(), b"").get_ordered_ops()}
    shape = load_library().opset13.constant(np.array([-1, 1], np.int64))
    parts["column"].input(0).replace_source_output(timestep)
    parts["column"].input(1).replace_source_output(shape.output(0))
    parts["angles"].input(1).replace_source_output(frequencies)
    return parts["angles"].output(0)
