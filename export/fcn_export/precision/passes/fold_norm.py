"""Fold BatchNormalization into the convolution before it: Q/DQ belongs around what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.names import Array
from fcn_export.precision.passes.graph_view import GraphView, attributes

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_batch_norms"]

_EPSILON = 1e-5  # of ONNX, where the attribute is left out


def fold_batch_norms(graph: onnx.GraphProto) -> int:
    """Rewrite `graph` in place; gives how many BatchNormalization nodes are gone.

    Precondition: the normalisation alone reads the convolution, in inference mode, and weights,
    bias and statistics are constants. Others stay as they are. Weights that several convolutions
    share are copied first.
    """
    folded = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        view = GraphView(graph)
        conv = view.producers.get(norm.input[0])
        if conv is None or not _foldable(view, conv, norm):
            continue
        _fold(view, conv, norm)
        folded += 1
    return folded


def _foldable(view: GraphView, conv: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    values = attributes(norm)
    constants = [*conv.input[1:], *norm.input[1:]]
    return (
        conv.op_type in ("Conv", "ConvTranspose")
        and view.only_consumer(conv.output[0]) is not None
        and not values.get("training_mode", 0)
        and len([name for name in norm.output if name]) == 1
        and all(name in view.constants for name in constants if name)
    )


def _fold(view: GraphView, conv: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    scale, shift, mean, variance = (_constant(view, name) for name in norm.input[1:5])
    epsilon = attributes(norm).get("epsilon", _EPSILON)
    factor = scale / np.sqrt(variance + epsilon)  # [C]
    weight = _constant(view, conv.input[1])
    old_bias = _constant(view, conv.input[2]) if len(conv.input) > 2 and conv.input[2] else 0.0
    bias = (old_bias - mean) * factor + shift
    if conv.op_type == "Conv":
        new_weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        groups = attributes(conv).get("group", 1)
        # weights are [C_in, C_out / groups, kh, kw]: input channels of group g make its outputs
        by_group = factor.reshape(groups, 1, -1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        new_weight = (split * by_group[..., None]).reshape(weight.shape)
    dtype = np.float32
    names = [
        _store(view.graph, f"{norm.name}_{kind}", value.astype(dtype))
        for kind, value in (("weight", new_weight), ("bias", np.asarray(bias)))
    ]
    del conv.input[1:]
    conv.input.extend(names)
    conv.output[0] = norm.output[0]
    unused = [name for name in norm.input[1:] if len(view.consumers[name]) == 1]
    view.graph.node.remove(norm)
    for index in reversed(range(len(view.graph.initializer))):
        if view.graph.initializer[index].name in unused:
            del view.graph.initializer[index]


def _constant(view: GraphView, name: str) -> Array:
    array = view.array(name)
    if array is None:
        raise ValueError(f"'{name}' is no constant")
    wide: Array = array.astype(np.float64)
    return wide


def _store(graph: onnx.GraphProto, name: str, value: Array) -> str:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name
