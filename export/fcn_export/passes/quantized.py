"""Quantised layers of a graph: their Q/DQ nodes, and the scales that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fcn_export.passes.half_weights import MIN_NORMAL_HALF

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.tensors import Array

__all__ = ["DEQUANTIZE", "QUANTIZE", "has_subnormal_scale", "readers_of", "scale_of"]

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


def scale_of(node: onnx.NodeProto, graph: onnx.GraphProto) -> Array | None:
    """Give the scale of a Q or DQ node; None where it is no initialiser."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == node.input[1]:
            return numpy_helper.to_array(tensor)
    return None


def has_subnormal_scale(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Say whether a Q or DQ node has a scale that float16 holds with fewer digits, or as 0."""
    scale = scale_of(node, graph)
    return scale is not None and bool((np.abs(scale) < MIN_NORMAL_HALF).any())


def readers_of(graph: onnx.GraphProto, tensor: str) -> Iterator[tuple[int, int]]:
    """Give each use of a tensor: the node's index, and which of its inputs it is."""
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            if name == tensor:
                yield index, position
