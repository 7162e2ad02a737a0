"""Write Q/DQ nodes into a graph, as a placement says and with the scales that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fcn_export.precision.passes.graph_view import GraphView
from fcn_export.precision.passes.int8_weights import QuantizedWeight
from fcn_export.precision.place import Placement

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.names import Array

__all__ = ["insert_qdq", "remove_unused_initializers"]

_LEVELS = 127


def insert_qdq(
    graph: onnx.GraphProto,
    placement: Placement,
    *,
    thresholds: Mapping[str, float],
    weights: Mapping[str, QuantizedWeight],
) -> None:
    """Rewrite `graph` in place; everything between the pairs stays float32.

    A tensor has one QuantizeLinear and one DequantizeLinear, whoever reads it through them. Weights
    are stored as int8 with a DequantizeLinear. Biases stay float: TensorRT refuses int32 ones.

    Args:
        thresholds: largest absolute value to represent, for each tensor with a pair.
        weights: by the name of the convolution.
    """
    writer = _Writer(graph)
    nodes = {node.name: node for node in graph.node}
    view = GraphView(graph)
    before: dict[str, list[onnx.NodeProto]] = {}  # by the name of the node they must precede
    after: dict[str, list[onnx.NodeProto]] = {}  # by the tensor that they read
    for tensor, edges in placement.edges.items():
        pair = writer.activation(tensor, np.float32(thresholds[tensor] / _LEVELS))
        after[tensor] = pair
        for name, index in edges:
            nodes[name].input[index] = pair[-1].output[0]
    for name, weight in weights.items():
        node = nodes[name]
        dequantize = writer.weight(node.name, node.input[1], weight)
        node.input[1] = dequantize.output[0]
        before[name] = [dequantize]
    ordered = [
        node for tensor, pair in after.items() if tensor not in view.producers for node in pair
    ]
    for node in graph.node:
        ordered += [*before.get(node.name, ()), node]
        for output in node.output:
            ordered += after.get(output, ())
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    remove_unused_initializers(graph)


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Delete in place what no node reads and no output gives."""
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


class _Writer:
    """Makes nodes and constants whose names nothing in the graph has."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._taken = {node.name for node in graph.node}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for tensor in graph.initializer}

    def activation(self, tensor: str, scale: np.float32) -> list[onnx.NodeProto]:
        from onnx import helper

        constants = [
            self._constant(f"{tensor}_scale", np.array(scale, np.float32)),
            self._constant(f"{tensor}_zero_point", np.array(0, np.int8)),
        ]
        quantized, restored = self._name(f"{tensor}_quantized"), self._name(f"{tensor}_dequantized")
        return [
            helper.make_node(
                "QuantizeLinear",
                [tensor, *constants],
                [quantized],
                name=self._name(f"{tensor}_QuantizeLinear"),
            ),
            helper.make_node(
                "DequantizeLinear",
                [quantized, *constants],
                [restored],
                name=self._name(f"{tensor}_DequantizeLinear"),
            ),
        ]

    def weight(self, node: str, tensor: str, weight: QuantizedWeight) -> onnx.NodeProto:
        from onnx import helper

        inputs = [
            self._constant(f"{tensor}_quantized", weight.values),
            self._constant(f"{tensor}_scale", weight.scales),
            self._constant(f"{tensor}_zero_point", np.zeros(len(weight.scales), np.int8)),
        ]
        return helper.make_node(
            "DequantizeLinear",
            inputs,
            [self._name(f"{tensor}_dequantized")],
            name=self._name(f"{node}_weight_DequantizeLinear"),
            axis=weight.axis,
        )

    def _constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        free = self._name(name)
        self._graph.initializer.append(numpy_helper.from_array(value, free))
        return free

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
