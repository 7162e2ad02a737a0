"""Fold the numbers of every BatchNormalization that is fixed into one scale and one shift.

Needs constant statistics and inference mode; others stay as they are. What is computed stays, up
to rounding. With `into_convolutions`, scale and shift go into the weights and the bias of the
convolution before, if nothing else reads that and its weights are constants: Q/DQ belongs around
what is left. Elsewhere they become the node's own, with mean 0 and variance 1: variances of weak
channels are far below what float16 can hold, and dividing by their root would be dividing by 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fcn_deploy.names import Array
from fcn_export.onnx_values import (
    add_constant,
    array_of,
    free_name,
    input_of,
    is_constant,
    name_of,
    only_reader,
)

__all__ = ["FoldBatchNorm"]

_EPSILON = 1e-5  # of ONNX, where the attribute is left out


class FoldBatchNorm(ir.passes.InPlacePass):
    """See the module.

    Args:
        into_convolutions: False where every node has to keep its name and its place.
    """

    def __init__(self, *, into_convolutions: bool) -> None:
        self._into_convolutions = into_convolutions

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in the main graph, and remove the numbers that nothing reads any more."""
        modified = False
        for node in model.graph:
            if node.op_type == "BatchNormalization" and _is_fixed(node):
                conv = self._convolution_before(node)
                if conv is not None:
                    _fold_into(model.graph, conv, node)
                    modified = True
                else:
                    modified |= _standardise(model.graph, node)
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)

    def _convolution_before(self, norm: ir.Node) -> ir.Node | None:
        value = input_of(norm, 0)
        conv = value.producer()
        if conv is None or not self._into_convolutions:
            return None
        takes = (
            conv.op_type in ("Conv", "ConvTranspose")
            and only_reader(value) is not None
            and all(is_constant(given) for given in conv.inputs[1:] if given is not None)
        )
        return conv if takes else None


def _is_fixed(norm: ir.Node) -> bool:
    return (
        not norm.attributes.get_int("training_mode", 0)
        and len([value for value in norm.outputs if value.name]) == 1
        and all(map(is_constant, norm.inputs[1:]))
    )


def _scale_and_shift(norm: ir.Node) -> tuple[Array, Array]:
    """Give what the node computes as float64 factor and shift, [C] each."""
    scale, shift, mean, variance = (_wide(value) for value in norm.inputs[1:5])
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", _EPSILON))
    return factor, shift - mean * factor


def _standardise(graph: ir.Graph, norm: ir.Node) -> bool:
    """Give the node mean 0 and variance 1; says whether it had others."""
    epsilon = norm.attributes.get_float("epsilon", _EPSILON)
    mean, variance = _wide(norm.inputs[3]), _wide(norm.inputs[4])
    one = np.full_like(variance, np.float32(1 - epsilon))
    if not mean.any() and np.array_equal(variance, one):
        return False
    factor, shift = _scale_and_shift(norm)
    values = {"scale": factor, "shift": shift, "mean": np.zeros_like(mean), "variance": one}
    for position, (what, value) in enumerate(values.items(), 1):
        _set(
            graph,
            node=norm,
            position=position,
            name=f"{name_of(norm.outputs[0])}_{what}",
            value=value,
        )
    return True


def _fold_into(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> None:
    factor, shift = _scale_and_shift(norm)
    weight = _wide(conv.inputs[1])
    if conv.op_type == "Conv":
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        groups = conv.attributes.get_int("group", 1)
        # weights are [C_in, C_out / groups, kh, kw]: input channels of group g make its outputs
        by_group = factor.reshape(groups, 1, -1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        folded = (split * by_group[..., None]).reshape(weight.shape)
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = shift + (_wide(conv.inputs[2]) * factor if has_bias else 0.0)
    conv.resize_inputs(3)
    _set(graph, node=conv, position=1, name=f"{norm.name}_weight", value=folded)
    _set(graph, node=conv, position=2, name=f"{norm.name}_bias", value=bias)
    made, kept = conv.outputs[0], norm.outputs[0]
    kept.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    made.name, made.type, made.shape = kept.name, kept.type or made.type, kept.shape or made.shape


def _set(graph: ir.Graph, node: ir.Node, position: int, name: str, value: Array) -> None:
    constant = np.ascontiguousarray(value, np.float32)
    node.replace_input_with(
        position, add_constant(graph, free_name(name, graph.initializers), constant)
    )


def _wide(value: ir.Value | None) -> Array:
    array = array_of(value)
    if array is None:
        raise ValueError("a value is no constant")
    return array.astype(np.float64)
