"""What nodes and values of an exported ONNX graph say of themselves; reads protobuf objects, imports no onnx."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Where torch.onnx notes the modules that a node comes from, outermost first and the node's own name last.
SCOPES = "pkg.torch.onnx.name_scopes"
_QUOTED = re.compile("'([^']*)'")


def scopes(node: onnx.NodeProto) -> list[str]:
    """Return the paths of the modules that a node lies in, outermost first, and its own name; empty if not noted."""
    return _QUOTED.findall(next((entry.value for entry in node.metadata_props if entry.key == SCOPES), ""))


def module_path(node: onnx.NodeProto) -> str:
    """Return the path of the innermost module that a node lies in; "" for the exported module itself, or if not noted.

    Example: "unet.up_blocks.3.resnets.1.conv_shortcut".
    """
    found = scopes(node)
    return found[-2] if len(found) > 1 else ""


def axes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape, with the names of dynamic axes."""
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
