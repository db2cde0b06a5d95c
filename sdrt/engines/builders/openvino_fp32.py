"""Layers that stay in fp32 in a model that OpenVINO computes in bf16: the timestep's angles, a UNet's last layers.

By default OpenVINO rounds the timestep to bf16, which has 8 significant bits: 958.4 becomes 960, and its product with
the largest frequency is wrong by up to two radians in every step. It also rounds the outputs of a UNet's last layers,
which a step multiplies by the change of sigma, and guidance by its scale: half of a step's error comes from there, in a
thousandth of the work (docs/decisions/0082 and 0083).

An attribute makes a node keep its precision. The Python API cannot create it, the IR format can; so each such node is
read from a small IR, and its inputs are then replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.libraries.openvino import core, load_library

if TYPE_CHECKING:
    import openvino

_KEPT_PRECISION = (
    '<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:dynamic"/></rt_info>'
)
_BROADCAST = 'auto_broadcast="numpy"'
#: Name of nodes that stay in fp32.
KEPT = "kept in fp32"
#: Names of types in the IR, by their names in Python.
_PRECISIONS = {"f32": "FP32", "i64": "I64"}


def keep_timestep(model: openvino.Model) -> int:
    """Compute the angles, timestep times frequencies, of sines and cosines in fp32.

    Args:
        model: Model of an exported graph: a parameter [batch], then Unsqueeze and Multiply by constants [1, n].

    Returns:
        The number of such products: one in a UNet, none in a model without timestep.
    """
    found = 0
    for node in model.get_ordered_ops():
        readers = list(node.output(0).get_target_inputs()) if node.get_output_size() else []
        if _kind(node) == "Multiply" and any(_kind(one.get_node()) == "Sin" for one in readers):
            column, frequencies = node.input_value(0), node.input_value(1)
            if _kind(column.get_node()) == "Unsqueeze" and _kind(frequencies.get_node()) == "Constant":
                # Reshape, not Unsqueeze, whose replacement loses the attribute when OpenVINO compiles.
                rows = _kept("Reshape", 'special_zero="false"', column.get_node().input_value(0), _whole([-1, 1]))
                _replace(node, _kept("Multiply", _BROADCAST, rows, frequencies))
                found += 1
    model.validate_nodes_and_infer_types()
    return found


def keep_last_layers(model: openvino.Model) -> bool:
    """Compute the last group normalisation, SiLU and convolution in fp32, with weights in fp32.

    Args:
        model: Model of a graph exported in fp32 with GroupNormalization operators (opset 21 and later).

    Returns:
        Whether the model ends in such layers, as a UNet does; otherwise it is unchanged.
    """
    convolutions = [node for node in model.get_ordered_ops() if _kind(node) == "Convolution"]
    norm = _normalised(convolutions[-1].input_value(0).get_node()) if convolutions else None
    if norm is None:
        return False
    last = convolutions[-1]
    _replace(last, _kept("Convolution", _attributes(last), _silu_of_norm(norm), last.input_value(1)))
    model.validate_nodes_and_infer_types()
    return True


def _normalised(node: openvino.Node) -> openvino.Node | None:
    """Return the group normalisation, with constant parameters, if a node is its SiLU; else None."""
    if _kind(node) != "Multiply":
        return None
    parts = {_kind(value.get_node()): value.get_node() for value in node.input_values()}
    norm, gate = parts.get("GroupNormalization"), parts.get("Sigmoid")
    if norm is None or gate is None or gate.input_value(0).get_node() != norm:
        return None
    constant = all(_kind(norm.input_value(index).get_node()) == "Constant" for index in (1, 2))
    return norm if constant else None


def _silu_of_norm(norm: openvino.Node) -> openvino.Output:
    """Build the SiLU of a group normalisation of [batch, channels, h, w] from operators that keep their precision.

    It is written as x sigmoid(x) = x/2 + x/2 tanh(x/2): OpenVINO fuses Sigmoid and Multiply into an operator that
    rounds.
    """
    about, value = norm.get_attributes(), norm.input_value(0)
    shape = value.get_partial_shape()
    channels, *area = (shape[axis].get_length() for axis in range(1, len(shape)))
    scale, shift = (
        load_library().opset13.constant((norm.input_value(index).get_node().data / 2).reshape(-1, 1, 1)).output(0)
        for index in (1, 2)
    )
    groups = _kept("Reshape", 'special_zero="true"', value, _whole([0, about["num_groups"], -1]))
    settings = f'eps="{about["epsilon"]}" normalize_variance="true" eps_mode="INSIDE_SQRT"'
    even = _kept("MVN", settings, groups, _whole([2]), opset=6)
    half = _kept("Reshape", 'special_zero="true"', even, _whole([0, channels, *area]))
    half = _kept("Add", _BROADCAST, _kept("Multiply", _BROADCAST, half, scale), shift)
    return _kept("Add", _BROADCAST, half, _kept("Multiply", _BROADCAST, half, _kept("Tanh", "", half)))


def _kept(kind: str, settings: str, *inputs: openvino.Output, opset: int = 1) -> openvino.Output:
    """Return the output of a new operator that stays in fp32.

    Args:
        kind: Type of the operator in the IR.
        settings: Attributes of the operator in the IR.
        inputs: Inputs, fp32 or int64.
        opset: Opset of the operator.
    """
    types = [str(value.get_element_type().get_type_name()) for value in inputs]
    at = len(inputs)
    layers = [
        _layer(port, "Parameter", f'shape="..." element_type="{name}"', [], name) for port, name in enumerate(types)
    ]
    layers.append(_layer(at, kind, settings, types, "f32", name=KEPT, more=_KEPT_PRECISION, opset=opset))
    layers.append(_layer(at + 1, "Result", "", ["f32"], ""))
    ends = [(port, 0, at, port) for port in range(at)] + [(at, at, at + 1, 0)]
    edges = [f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>' for a, b, c, d in ends]
    text = f'<net name="kept" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges></net>'
    read = core().read_model(f'<?xml version="1.0"?>{text}'.encode(), b"")
    [node] = [one for one in read.get_ordered_ops() if one.get_friendly_name() == KEPT]
    for port, value in enumerate(inputs):
        node.input(port).replace_source_output(value)
    made: openvino.Output = node.output(0)
    return made


def _layer(
    number: int,
    kind: str,
    settings: str,
    inputs: list[str],
    output: str,
    *,
    name: str = "",
    more: str = "",
    opset: int = 1,
) -> str:
    """Return the IR of an operator; types are named as in Python."""
    takes = "".join(f'<port id="{port}" precision="{_PRECISIONS[one]}"/>' for port, one in enumerate(inputs))
    gives = f'<output><port id="{len(inputs)}" precision="{_PRECISIONS[output]}"/></output>' if output else ""
    return (
        f'<layer id="{number}" name="{name or number}" type="{kind}" version="opset{opset}">'
        f"<data {settings}/>{more}{takes and f'<input>{takes}</input>'}{gives}</layer>"
    )


def _attributes(convolution: openvino.Node) -> str:
    """Return a convolution's attributes as in the IR."""
    about: dict[str, Any] = convolution.get_attributes()
    return " ".join(
        f'{name}="{value if isinstance(value, str) else ", ".join(map(str, value))}"' for name, value in about.items()
    )


def _replace(node: openvino.Node, value: openvino.Output) -> None:
    """Connect all readers of a node's output to another output."""
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(value)


def _whole(values: list[int]) -> openvino.Output:
    constant: openvino.Output = load_library().opset13.constant(np.array(values, np.int64)).output(0)
    return constant


def _kind(node: openvino.Node) -> str:
    return str(node.get_type_name())
