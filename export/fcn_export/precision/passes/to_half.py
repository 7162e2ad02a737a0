"""Rewrite a float32 graph to compute in float16 between its first and its last layers.

What it needs: a sorted graph of ONNX's own operators, without If, Loop and Scan. What it does:
weights and inner tensors become float16, with a Cast where a float16 and a float32 part meet. What
stays float32: preparing the frame (values up to 255 times small factors), the last upsampling and
all that makes labels or probabilities of the scores (in float16 many more scores would be equal),
numbers made of sizes, and the operators of `FLOAT32_OPS`. Inputs and outputs keep their types.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.onnx_values import name_of, standard_opset, take_proto
from fcn_export.precision.passes.element_types import InferTypes
from fcn_export.precision.passes.fold_batch_norm import FoldBatchNorm
from fcn_export.precision.passes.graph_sections import find_sections
from fcn_export.precision.passes.half_rewrite import HalfRewrite
from fcn_export.precision.passes.half_slots import HalfSlots, half_slots
from fcn_export.precision.passes.half_weights import HalfWeights
from fcn_export.precision.passes.quantized import DEQUANTIZE, QUANTIZE, has_subnormal_scale

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT32_OPS", "Fp16Changes", "ToHalf", "convert_to_fp16", "fp16_remainder"]

FLOAT32_OPS = frozenset((
    # sums of many values, or of squares: beyond 65504 long before their mean is
    *("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "CumSum", "LpPool"),
    *("ReduceLogSum", "ReduceLogSumExp", "LpNormalization", "LRN", "RMSNormalization"),
    *("InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    *("MeanVarianceNormalization", "Softmax", "LogSoftmax"),
    # these grow fast
    *("Exp", "Pow", "Softplus"),
    # these read coordinates: above 1024, float16 holds no half pixels
    *("GridSample", "AffineGrid", "RoiAlign", "DeformConv"),
))  # fmt: skip
"""Operators that compute in float32 unless told otherwise."""

MIN_HALF_SCALE_OPSET = 19


@dataclass(frozen=True, slots=True)
class Fp16Changes:
    """The changes that the pass made.

    Attributes:
        half_nodes: nodes that compute in float16, by name.
        float_nodes: nodes between frame and head that compute in float32, by name.
        casts: nodes that were added.
    """

    weights: HalfWeights
    half_nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    casts: int


class ToHalf(ir.passes.InPlacePass):
    """See the module.

    Args:
        float32_ops: kinds of nodes that stay float32.
        float32_nodes: names of nodes that stay float32.

    Attributes:
        changes: what was done.
    """

    changes: Fp16Changes

    def __init__(
        self,
        *,
        float32_ops: Collection[str] = FLOAT32_OPS,
        float32_nodes: Collection[str] = (),
    ) -> None:
        self._float32_ops = float32_ops
        self._float32_nodes = float32_nodes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph.

        Raises:
            UnsupportedModelError: a node holds a graph of its own, a type is unknown, or a named
                node does not exist.
        """
        graph = model.graph
        _check_nodes(graph, self._float32_nodes)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        FoldBatchNorm(into_convolutions=False)(model)
        InferTypes()(model)
        slots = {node: half_slots(node, standard_opset(model)) for node in graph}
        float_scales = {node for node in graph if has_subnormal_scale(node)}
        blocked = {
            node
            for node in graph
            if node.op_type in self._float32_ops or node.name in self._float32_nodes
        }
        for node in float_scales:
            if node.op_type == DEQUANTIZE:
                blocked.update(node.outputs[0].consumers())
        between = [
            node
            for node in find_sections(graph).between(graph)
            if _computes_floats(node, slots[node])
        ]
        half = [node for node in between if node not in blocked]
        rewrite = HalfRewrite(graph, slots, frozenset(half), float_scales)
        rewrite.run()
        InferTypes(keep_described=False)(model)
        self.changes = Fp16Changes(
            rewrite.weights,
            tuple(name_of(node) for node in half),
            tuple(name_of(node) for node in between if node in blocked),
            rewrite.casts,
        )
        return ir.passes.PassResult(model, bool(half))


def convert_to_fp16(
    model: onnx.ModelProto,
    *,
    float32_ops: Collection[str] = FLOAT32_OPS,
    float32_nodes: Collection[str] = (),
) -> Fp16Changes:
    """Rewrite `model` in place. Layers between Q and DQ stay int8; the rest becomes float16.

    Args:
        float32_ops: kinds of nodes that stay float32.
        float32_nodes: names of nodes that stay float32.

    Raises:
        UnsupportedModelError: a node holds a graph of its own, a type is unknown, or a named node
            does not exist.
    """
    to_half = ToHalf(float32_ops=float32_ops, float32_nodes=float32_nodes)
    model.CopyFrom(take_proto(to_half(ir.from_proto(model)).model))
    return to_half.changes


def fp16_remainder(model: onnx.ModelProto, *, float32_nodes: Collection[str] = ()) -> Fp16Changes:
    """Make float16 what an int8 graph computes between its quantised layers, in place.

    TensorRT computes in the types that a graph names: an int8 graph whose rest is float32 runs
    that rest in float32. Scales take the type of the values that they belong to; a layer whose
    scales float16 would not hold stays float32. CPUs run the graph as it was.

    Args:
        float32_nodes: names of nodes that stay float32.

    Raises:
        UnsupportedModelError: there are no quantised layers, float16 scales are not to be had in
            the model's opset, or as for `convert_to_fp16`.
    """
    opset = standard_opset(ir.from_proto(model))
    if not any(node.op_type == DEQUANTIZE for node in model.graph.node):
        raise UnsupportedModelError("the graph has no quantised layers.")
    if opset < MIN_HALF_SCALE_OPSET:
        raise UnsupportedModelError(
            f"the graph is in opset {opset}; float16 scales need {MIN_HALF_SCALE_OPSET}.",
            hint=f"Export with --opset {MIN_HALF_SCALE_OPSET} or later.",
        )
    return convert_to_fp16(model, float32_nodes=float32_nodes)


def _computes_floats(node: ir.Node, slots: HalfSlots | None) -> bool:
    """Say whether a node could compute in float16; Q and DQ follow their neighbours instead."""
    if slots is None or node.op_type in (QUANTIZE, DEQUANTIZE):
        return False

    def any_half(values: Sequence[ir.Value | None], allowed: Sequence[bool]) -> bool:
        return any(
            may and value is not None and value.dtype == ir.DataType.FLOAT
            for value, may in zip(values, allowed, strict=True)
        )

    return any_half(node.inputs, slots.inputs) or any_half(node.outputs, slots.outputs)


def _check_nodes(graph: ir.Graph, named: Collection[str]) -> None:
    missing = sorted(set(named).difference(name_of(node) for node in graph))
    if missing:
        raise UnsupportedModelError(f"no node of the graph is called '{missing[0]}'.")
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for node in graph:
        if any(attribute.type in graphs for attribute in node.attributes.values()):
            raise UnsupportedModelError(
                f"node '{node.name}' ({node.op_type}) holds a graph of its own, which cannot be "
                "made fp16.",
                hint="Leave fp16 out of --precision, or let the model's path not depend on values.",
            )
