"""What must be known of an ONNX file before a parser sees it: read from its wire format."""

from __future__ import annotations

from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import (
    ExternalData,
    GraphTensor,
    Node,
    OnnxGraph,
    StoredTensor,
)
from fcn_deploy.graph.scan.outputs import with_extra_outputs, with_outputs
from fcn_deploy.graph.scan.scan import scan_onnx

__all__ = [
    "ExternalData",
    "GraphTensor",
    "Node",
    "OnnxGraph",
    "ScanLimits",
    "StoredTensor",
    "scan_onnx",
    "with_extra_outputs",
    "with_outputs",
]
