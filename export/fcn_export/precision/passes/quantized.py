"""Find the quantised layers of a graph, and scales that float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fcn_export.onnx_values import array_of
from fcn_export.precision.passes.half_weights import MIN_NORMAL_HALF

__all__ = ["DEQUANTIZE", "QUANTIZE", "has_subnormal_scale"]

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


def has_subnormal_scale(node: ir.Node) -> bool:
    """Say whether a Q or DQ node has a scale that float16 holds with fewer digits, or as 0."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return False
    scale = array_of(node.inputs[1])
    return scale is not None and bool((np.abs(scale) < MIN_NORMAL_HALF).any())
