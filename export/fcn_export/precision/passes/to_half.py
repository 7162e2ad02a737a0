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

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.precision.passes.batch_norm import fold_statistics
from fcn_export.precision.passes.element_types import (
    describe_tensors,
    element_types,
    standard_opset,
)
from fcn_export.precision.passes.half_rewrite import HalfRewrite
from fcn_export.precision.passes.half_slots import HalfSlots, half_slots
from fcn_export.precision.passes.half_weights import HalfWeights
from fcn_export.precision.passes.quantized import (
    DEQUANTIZE,
    QUANTIZE,
    has_subnormal_scale,
    readers_of,
)
from fcn_export.precision.passes.regions import find_regions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

__all__ = ["FLOAT32_OPS", "Fp16Changes", "convert_to_fp16", "fp16_remainder"]

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

_FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Fp16Changes:
    """What the pass did.

    Attributes:
        half_nodes: nodes that compute in float16, by name.
        float_nodes: nodes between frame and head that compute in float32, by name.
        casts: nodes that were added.
    """

    weights: HalfWeights
    half_nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    casts: int


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
    graph = model.graph
    _check_nodes(graph, float32_nodes)
    _constants_to_initializers(graph)
    fold_statistics(graph)
    opset = standard_opset(model)
    types = element_types(model)
    slots = [half_slots(node, opset) for node in graph.node]
    float_scales = {
        index
        for index, node in enumerate(graph.node)
        if node.op_type in (QUANTIZE, DEQUANTIZE) and has_subnormal_scale(node, graph)
    }
    blocked = {
        index
        for index, node in enumerate(graph.node)
        if node.op_type in float32_ops or node.name in float32_nodes
    }
    blocked |= {
        reader
        for index in float_scales
        if graph.node[index].op_type == DEQUANTIZE
        for reader, _ in readers_of(graph, graph.node[index].output[0])
    }
    regions = find_regions(graph)
    between = {
        index
        for index in regions.image - regions.frame - regions.head
        if _computes_floats(graph.node[index], slots[index], types)
    }
    half = between - blocked
    half_names = tuple(graph.node[index].name for index in sorted(half))
    float_names = tuple(graph.node[index].name for index in sorted(between & blocked))
    rewrite = HalfRewrite(graph, types, slots, half, float_scales)
    rewrite.run()
    describe_tensors(model)
    return Fp16Changes(rewrite.weights, half_names, float_names, rewrite.casts)


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
    opset = standard_opset(model)
    if not any(node.op_type == DEQUANTIZE for node in model.graph.node):
        raise UnsupportedModelError("the graph has no quantised layers.")
    if opset < MIN_HALF_SCALE_OPSET:
        raise UnsupportedModelError(
            f"the graph is in opset {opset}; float16 scales need {MIN_HALF_SCALE_OPSET}.",
            hint=f"Export with --opset {MIN_HALF_SCALE_OPSET} or later.",
        )
    return convert_to_fp16(model, float32_nodes=float32_nodes)


def _computes_floats(
    node: onnx.NodeProto, slots: HalfSlots | None, types: Mapping[str, int]
) -> bool:
    """Say whether a node could compute in float16; Q and DQ follow their neighbours instead."""
    if slots is None or node.op_type in (QUANTIZE, DEQUANTIZE):
        return False

    def any_half(names: Sequence[str], allowed: Sequence[bool]) -> bool:
        return any(
            may and types.get(name) == _FLOAT for name, may in zip(names, allowed, strict=True)
        )

    return any_half(node.input, slots.inputs) or any_half(node.output, slots.outputs)


def _check_nodes(graph: onnx.GraphProto, named: Collection[str]) -> None:
    known = {node.name for node in graph.node}
    missing = sorted(set(named) - known)
    if missing:
        raise UnsupportedModelError(f"no node of the graph is called '{missing[0]}'.")
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UnsupportedModelError(
                f"node '{node.name}' ({node.op_type}) holds a graph of its own, which cannot be "
                "made fp16.",
                hint="Leave fp16 out of --precision, or let the model's path not depend on values.",
            )


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Give float Constant nodes the form of weights, so that one rule serves both."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    kept = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" else None
        if attribute is None or attribute.name not in ("value", "value_float", "value_floats"):
            kept.append(node)
            continue
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
        else:
            held = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.array(held, np.float32), node.output[0])
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)
