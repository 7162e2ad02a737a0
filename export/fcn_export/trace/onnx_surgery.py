"""Put preprocessing and head around a network that is an ONNX graph already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fcn_deploy.artifact.manifest import TensorInfo
from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import INPUT_NAME, SCORES, GraphSpec
from fcn_export.onnx_values import (
    add_constant,
    forget_inner_shapes,
    free_name,
    standard_opset,
    tensors_by_name,
)

__all__ = ["MIN_FOREIGN_OPSET", "AdoptGraph", "WrapNetwork"]

MIN_FOREIGN_OPSET = 13
"""Before, Squeeze took its axes as an attribute and Softmax flattened its input."""

_SHAPE_TAKES_A_RANGE = 15
_REDUCE_AXES_AS_INPUT = 18
_OURS = (INPUT_NAME, SCORES, "labels", "confidence", "network_scores")
_PREFIX = "frame_"
_NETWORK_INPUT = "network_input"


class WrapNetwork(ir.passes.InPlacePass):
    """Let a graph take frames and give the outputs that `spec` names.

    What is computed up to the scores stays; nodes that only made the old outputs are removed.

    Args:
        scores: tensor to take as scores, or as class ids, with the axes that `spec` says.
    """

    def __init__(self, spec: GraphSpec, *, scores: str) -> None:
        self._spec = spec
        self._scores = scores

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph.

        Raises:
            UnsupportedModelError: the graph's opset is too old.
        """
        opset = standard_opset(model)
        if opset < MIN_FOREIGN_OPSET:
            raise UnsupportedModelError(
                f"the ONNX file is in opset {opset}; {MIN_FOREIGN_OPSET} or later is needed.",
                hint="Export it again with a later opset.",
            )
        graph, spec = model.graph, self._spec
        scores = tensors_by_name(graph)[self._scores]
        entry = graph.inputs[0]
        _free_names(graph)
        builder = _Builder(graph)
        image = _declared(spec.input)
        frame, prepared = _preprocessing(builder, spec, image)
        entry.replace_all_uses_with(prepared)
        prepared.name = free_name(_NETWORK_INPUT, tensors_by_name(graph))
        graph.insert_before(graph[0], builder.take())
        made = _head(builder, spec, scores, frame, opset)
        graph.extend(builder.take())
        graph.inputs.clear()
        graph.inputs.append(image)
        graph.outputs.clear()
        forget_inner_shapes(graph)
        for tensor in spec.outputs:
            value, declared = made[tensor.name], _declared(tensor)
            value.type, value.shape = declared.type, declared.shape
            graph.outputs.append(value)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)


class AdoptGraph(ir.passes.InPlacePass):
    """Name the input and the label output of a graph that is complete already.

    Args:
        output: that holds labels; others are removed, with the nodes that only made them.
    """

    def __init__(self, *, output: str) -> None:
        self._output = output

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        graph = model.graph
        labels = next(value for value in graph.outputs if value.name == self._output)
        graph.outputs.clear()
        graph.outputs.append(labels)
        _free_names(graph)
        graph.inputs[0].name = INPUT_NAME
        labels.name = "labels"
        forget_inner_shapes(graph)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)


class _Builder:
    """Makes nodes and constants with names of their own."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes: list[ir.Node] = []
        self._count = 0

    def add(
        self, op: str, *inputs: ir.Value | None, output: str | None = None, **attributes: Any
    ) -> ir.Value:
        self._count += 1
        result = ir.val(output or f"{_PREFIX}{op.lower()}_{self._count}")
        name = f"{_PREFIX}node_{op}_{self._count}"
        self._nodes.append(ir.node(op, inputs, attributes, outputs=[result], name=name))
        return result

    def constant(self, values: Sequence[Any], dtype: str, shape: Sequence[int]) -> ir.Value:
        self._count += 1
        array = np.array(values, dtype).reshape(shape)
        return add_constant(self._graph, f"{_PREFIX}constant_{self._count}", array)

    def take(self) -> list[ir.Node]:
        """Give the nodes that were made since the last call, in order."""
        nodes, self._nodes = self._nodes, []
        return nodes


def _preprocessing(
    builder: _Builder, spec: GraphSpec, image: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Give the frame as float32 [N, H, W, 3], and what the network takes."""
    factor, offset = spec.affine()
    frame = builder.add("Cast", image, output=f"{_PREFIX}float", to=ir.DataType.FLOAT)
    shift = builder.constant(offset, "float32", (1, -1, 1, 1))
    if spec.preprocess.color == "gray":
        weights = builder.constant(factor, "float32", (3, 1))
        luminance = builder.add("MatMul", frame, weights)  # [N, H, W, 1]
        scaled = builder.add("Transpose", luminance, perm=[0, 3, 1, 2])
    else:
        planes = builder.add("Transpose", frame, perm=[0, 3, 1, 2])  # [N, 3, H, W]
        if spec.channel_order != (0, 1, 2):
            order = builder.constant(spec.channel_order, "int64", (3,))
            planes = builder.add("Gather", planes, order, axis=1)
        scale = builder.constant(factor, "float32", (1, 3, 1, 1))
        scaled = builder.add("Mul", planes, scale)
    return frame, builder.add("Add", scaled, shift)


def _head(
    builder: _Builder, spec: GraphSpec, scores: ir.Value, frame: ir.Value, opset: int
) -> dict[str, ir.Value]:
    """Give the outputs that `spec` may name, by name."""
    one = builder.constant([1], "int64", (1,))
    ids = spec.activation == "ids"
    if spec.class_axis == 3:
        scores = builder.add("Transpose", scores, perm=[0, 3, 1, 2])  # [N, C, h, w]
    elif spec.class_axis is None:
        scores = builder.add("Unsqueeze", scores, one)
    if ids:  # Resize takes no integers of 64 bits everywhere, and every id fits a float32
        scores = builder.add("Cast", scores, to=ir.DataType.FLOAT)
    if spec.upsample:
        classes = _sizes(builder, scores, 0, 2, opset)
        size = _sizes(builder, frame, 1, 3, opset)
        full = builder.add(
            *("Resize", scores, None, None, builder.add("Concat", classes, size, axis=0)),
            output=f"{_PREFIX}ids" if ids else SCORES,
            mode="nearest" if ids else "linear",
            coordinate_transformation_mode="asymmetric" if ids else "half_pixel",
            **({"nearest_mode": "floor"} if ids else {}),
        )
    else:
        full = builder.add("Identity", scores, output=f"{_PREFIX}ids" if ids else SCORES)
    if spec.head == "scores":
        return {SCORES: full}
    code = ir.DataType.UINT8 if spec.num_classes <= 256 else ir.DataType.INT32
    above: ir.Value | None = None
    if ids:
        best = builder.add("Squeeze", full, one)
    elif spec.num_classes == 1:
        limit = builder.constant([spec.score_threshold], "float32", (1,))
        above = builder.add("Greater", full, limit)
        best = builder.add("Squeeze", above, one)
    else:
        best = builder.add("ArgMax", full, axis=1, keepdims=0)
    labels = builder.add("Cast", best, output="labels", to=code)
    if spec.head != "confidence":
        return {"labels": labels}
    if above is not None:
        return {"labels": labels, "confidence": _single_confidence(builder, spec, full, best, one)}
    return {"labels": labels, "confidence": _confidence(builder, spec, full, one, opset)}


def _single_confidence(
    builder: _Builder, spec: GraphSpec, scores: ir.Value, above: ir.Value, one: ir.Value
) -> ir.Value:
    """Give the label's probability [N, H, W], activated where the network did not."""
    single = builder.add("Squeeze", scores, one)
    logits = spec.activation == "logits"
    if logits and spec.threshold == 0.5:
        return builder.add("Sigmoid", builder.add("Abs", single), output="confidence")
    share = builder.add("Sigmoid", single) if logits else single
    other = builder.add("Sub", builder.constant([1.0], "float32", (1,)), share)
    return builder.add("Where", above, share, other, output="confidence")


def _confidence(
    builder: _Builder, spec: GraphSpec, scores: ir.Value, one: ir.Value, opset: int
) -> ir.Value:
    logits = spec.activation == "logits"
    shares = builder.add("Softmax", scores, axis=1) if logits else scores
    if opset >= _REDUCE_AXES_AS_INPUT:
        return builder.add("ReduceMax", shares, one, output="confidence", keepdims=0)
    return builder.add("ReduceMax", shares, output="confidence", axes=[1], keepdims=0)


def _sizes(builder: _Builder, tensor: ir.Value, start: int, end: int, opset: int) -> ir.Value:
    if opset >= _SHAPE_TAKES_A_RANGE:
        return builder.add("Shape", tensor, start=start, end=end)
    shape = builder.add("Shape", tensor)
    first = builder.constant([start], "int64", (1,))
    last = builder.constant([end], "int64", (1,))
    return builder.add("Slice", shape, first, last)


def _free_names(graph: ir.Graph) -> None:
    """Rename what has one of our names."""
    values = tensors_by_name(graph)
    taken = set(values)
    for name in sorted(taken):
        if name in _OURS or name.startswith(_PREFIX):
            new = f"inner_{name}"
            while new in taken:
                new = f"inner_{new}"
            taken.add(new)
            values[name].name = new


def _declared(tensor: TensorInfo) -> ir.Value:
    sizes = zip(tensor.shape, tensor.layout, strict=True)
    shape = [letter if size is None else size for size, letter in sizes]
    return ir.val(tensor.name, ir.DataType.from_numpy(np.dtype(tensor.dtype)), shape)
