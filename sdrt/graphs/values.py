"""Module paths of nodes and shapes of values in an exported ONNX graph; reads protobuf objects, imports no onnx."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Key of the metadata in which torch.onnx lists a node's modules, outermost first, and the node's own name.
SCOPES = "pkg.torch.onnx.name_scopes"
_QUOTED = re.compile("'([^']*)'")


def scopes(node: onnx.NodeProto) -> list[str]:
    """Return the paths of a node's modules, outermost first, and its own name; empty if the exporter noted none."""
    return _QUOTED.findall(next((entry.value for entry in node.metadata_props if entry.key == SCOPES), ""))


def module_path(node: onnx.NodeProto) -> str:
    """Return the path of a node's innermost module; "" for the exported module itself, or if the exporter noted none.

    Example: "unet.up_blocks.3.resnets.1.conv_shortcut".
    """
    found = scopes(node)
    return found[-2] if len(found) > 1 else ""


def axes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape, with the names of dynamic axes."""
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
