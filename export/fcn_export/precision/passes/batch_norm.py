"""Give every BatchNormalization variance 1 and mean 0, its numbers folded into scale and shift.

What it needs: constant statistics. What it does not change: the result. Variances of weak channels
are far below what float16 can hold, and dividing by their root would be dividing by 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_statistics"]

_EPSILON = 1e-5  # ONNX's default


def fold_statistics(graph: onnx.GraphProto) -> int:
    """Rewrite `graph` in place; gives the number of nodes that were changed."""
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    changed = 0
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(n in tensors for n in node.input[1:]):
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:]
        )
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        epsilon = float(attributes.get("epsilon", _EPSILON))
        factor = scale / np.sqrt(variance + epsilon)
        values = {
            "scale": factor,
            "shift": shift - mean * factor,
            "mean": np.zeros_like(mean),
            "variance": np.ones_like(variance) - epsilon,
        }
        for position, (what, value) in enumerate(values.items(), 1):
            name = f"{node.output[0]}_{what}"
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
            node.input[position] = name
        changed += 1
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if changed and graph.initializer[index].name not in used:
            del graph.initializer[index]
    return changed
