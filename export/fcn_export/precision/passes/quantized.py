"""Quantised layers of a graph: their Q/DQ nodes, and the scales that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fcn_export.precision.passes.half_weights import MIN_NORMAL_HALF

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.names import Array

__all__ = ["DEQUANTIZE", "QUANTIZE", "constant_of", "has_subnormal_scale", "readers_of"]

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


def constant_of(node: onnx.NodeProto, position: int, graph: onnx.GraphProto) -> Array | None:
    """Give the value of a node's input; None where it is no initialiser, or left out."""
    from onnx import numpy_helper

    if position >= len(node.input):
        return None
    for tensor in graph.initializer:
        if tensor.name == node.input[position]:
            return numpy_helper.to_array(tensor)
    return None


def has_subnormal_scale(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Say whether a Q or DQ node has a scale that float16 holds with fewer digits, or as 0."""
    scale = constant_of(node, 1, graph)
    return scale is not None and bool((np.abs(scale) < MIN_NORMAL_HALF).any())


def readers_of(graph: onnx.GraphProto, tensor: str) -> Iterator[tuple[int, int]]:
    """Give each use of a tensor: the node's index, and which of its inputs it is."""
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            if name == tensor:
                yield index, position
