"""Put preprocessing and head around a network that is an ONNX graph already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import INPUT_NAME, SCORES, GraphSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["MIN_FOREIGN_OPSET", "adopt_graph", "wrap_network"]

MIN_FOREIGN_OPSET = 13
"""Before, Squeeze took its axes as an attribute and Softmax flattened its input."""

_REDUCE_AXES_AS_INPUT = 18
_PREFIX = "frame_"
_NETWORK_INPUT = "network_input"


def wrap_network(
    model: onnx.ModelProto, spec: GraphSpec, *, scores: str, threshold: float = 0.0
) -> None:
    """Rewrite `model` in place to take frames and give the outputs that `spec` names.

    Nodes that only made the old outputs are removed.

    Args:
        scores: tensor [N, C, h, w] to take as scores.
        threshold: subtracted from a single class's scores, so that 0 divides its two labels.

    Raises:
        UnsupportedModelError: the graph's opset is too old.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < MIN_FOREIGN_OPSET:
        raise UnsupportedModelError(
            f"the ONNX file is in opset {opset}; {MIN_FOREIGN_OPSET} or later is needed.",
            hint="Export it again with a later opset.",
        )
    graph = model.graph
    names = _free_names(graph, scores)
    builder = _Builder(graph)
    before = _preprocessing(builder, spec, output=names[graph.input[0].name])
    builder.nodes = []
    _head(builder, spec, names[scores], threshold, opset)
    kept = _needed_nodes(graph, names[scores])
    nodes = [*before, *kept, *builder.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    _declare(graph, spec)


def adopt_graph(model: onnx.ModelProto, *, output: str) -> None:
    """Rename in place the input and the label output of a graph that is complete already.

    Args:
        output: that holds labels; others are removed.
    """
    graph = model.graph
    renamed = _free_names(graph, output)
    made, taken = renamed[output], renamed[graph.input[0].name]
    kept = _needed_nodes(graph, made)
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = {taken: INPUT_NAME, made: "labels"}.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = "labels" if name == made else name
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    graph.input[0].name = INPUT_NAME
    for index in reversed(range(len(graph.output))):
        if graph.output[index].name == output:
            graph.output[index].name = "labels"
        else:
            del graph.output[index]


class _Builder:
    """Adds nodes and constants with names of their own."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        self._count += 1
        result = output or f"{_PREFIX}{op.lower()}_{self._count}"
        name = f"{_PREFIX}node_{op}_{self._count}"
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=name, **attributes))
        return result

    def constant(self, values: Sequence[Any], dtype: str, shape: Sequence[int]) -> str:
        from onnx import numpy_helper

        self._count += 1
        name = f"{_PREFIX}constant_{self._count}"
        array = np.array(values, dtype).reshape(shape)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _preprocessing(builder: _Builder, spec: GraphSpec, *, output: str) -> list[onnx.NodeProto]:
    import onnx

    factor, offset = spec.affine()
    frame = builder.add("Cast", INPUT_NAME, output=f"{_PREFIX}float", to=onnx.TensorProto.FLOAT)
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
    builder.add("Add", scaled, shift, output=output)
    return builder.nodes


def _head(builder: _Builder, spec: GraphSpec, scores: str, threshold: float, opset: int) -> None:
    import onnx

    if threshold and spec.num_classes == 1:
        limit = builder.constant([threshold], "float32", (1,))
        scores = builder.add("Sub", scores, limit)
    if spec.upsample:
        classes = builder.add("Shape", scores, start=0, end=2) if opset >= 15 else None
        size = builder.add("Shape", f"{_PREFIX}float", start=1, end=3) if opset >= 15 else None
        if classes is None or size is None:
            classes = _slice_shape(builder, scores, 0, 2)
            size = _slice_shape(builder, f"{_PREFIX}float", 1, 3)
        sizes = builder.add("Concat", classes, size, axis=0)
        builder.add(
            *("Resize", scores, "", "", sizes),
            output=SCORES,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
    else:
        builder.add("Identity", scores, output=SCORES)
    if spec.head == "scores":
        return
    code = onnx.TensorProto.UINT8 if spec.num_classes <= 256 else onnx.TensorProto.INT32
    one = builder.constant([1], "int64", (1,))
    if spec.num_classes == 1:
        zero = builder.constant([0.0], "float32", (1,))
        above = builder.add("Squeeze", builder.add("Greater", SCORES, zero), one)
        builder.add("Cast", above, output="labels", to=code)
    else:
        best = builder.add("ArgMax", SCORES, axis=1, keepdims=0)
        builder.add("Cast", best, output="labels", to=code)
    if spec.head == "confidence":
        _confidence(builder, spec, one, opset)


def _confidence(builder: _Builder, spec: GraphSpec, one: str, opset: int) -> None:
    if spec.num_classes == 1:
        distance = builder.add("Abs", builder.add("Squeeze", SCORES, one))
        builder.add("Sigmoid", distance, output="confidence")
        return
    shares = builder.add("Softmax", SCORES, axis=1)
    if opset >= _REDUCE_AXES_AS_INPUT:
        builder.add("ReduceMax", shares, one, output="confidence", keepdims=0)
    else:
        builder.add("ReduceMax", shares, output="confidence", axes=[1], keepdims=0)


def _slice_shape(builder: _Builder, tensor: str, start: int, end: int) -> str:
    shape = builder.add("Shape", tensor)
    first = builder.constant([start], "int64", (1,))
    last = builder.constant([end], "int64", (1,))
    return builder.add("Slice", shape, first, last)


def _free_names(graph: onnx.GraphProto, scores: str) -> dict[str, str]:
    """Rename what would clash with our names; gives the new names of input and scores."""
    taken = (INPUT_NAME, SCORES, "labels", "confidence", "network_scores")
    entry = graph.input[0].name
    given = {entry, *(name for node in graph.node for name in (*node.input, *node.output))}
    given |= {tensor.name for tensor in graph.initializer}
    clashes = {name for name in given if name in taken or name.startswith(_PREFIX)} | {entry}
    renamed: dict[str, str] = {}
    for name in sorted(clashes):
        new = _NETWORK_INPUT if name == entry else f"inner_{name}"
        while new in given:
            new = f"inner_{new}"
        given.add(new)
        renamed[name] = new
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = renamed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    return {entry: renamed[entry], scores: renamed.get(scores, scores)}


def _needed_nodes(graph: onnx.GraphProto, scores: str) -> list[onnx.NodeProto]:
    """Copy the nodes that `scores` is made of, in order."""
    wanted = {scores}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(type(node).FromString(node.SerializeToString()))
    for index in reversed(range(len(graph.initializer))):
        name = graph.initializer[index].name
        if name not in wanted and not name.startswith(_PREFIX):
            del graph.initializer[index]
    return kept[::-1]


def _declare(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    from onnx import TensorProto, helper

    codes = {
        "uint8": TensorProto.UINT8,
        "int32": TensorProto.INT32,
        "float32": TensorProto.FLOAT,
    }
    del graph.input[:]
    del graph.output[:]
    for values, tensors in ((graph.input, (spec.input,)), (graph.output, spec.outputs)):
        for tensor in tensors:
            dims = [
                letter if size is None else size
                for size, letter in zip(tensor.shape, tensor.layout, strict=True)
            ]
            values.append(helper.make_tensor_value_info(tensor.name, codes[tensor.dtype], dims))
