"""Nodes with the module scopes that torch's exporter records."""

from __future__ import annotations

import onnx

from sdrt.graphs.values import SCOPES


def marked(node: onnx.NodeProto, *scopes: str) -> onnx.NodeProto:
    """Add the metadata in which the exporter records a node's modules."""
    node.metadata_props.add(key=SCOPES, value=str(["", *scopes, node.name]))
    return node
