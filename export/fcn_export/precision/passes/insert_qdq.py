"""Write Q/DQ nodes into a graph, as a placement says and with the scales that were measured.

Needs a float32 graph whose nodes have names of their own. A tensor gets one QuantizeLinear and one
DequantizeLinear, for all nodes that read it through them; weights are stored as int8 with a
DequantizeLinear. Everything between the pairs stays float32, and so do
biases: TensorRT refuses int32 ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fcn_export.onnx_values import (
    add_constant,
    free_name,
    input_of,
    name_of,
    tensors_by_name,
)
from fcn_export.precision.passes.int8_weights import QuantizedWeight

if TYPE_CHECKING:
    from fcn_deploy.names import Array

__all__ = ["InsertQdq"]

_LEVELS = 127


class InsertQdq(ir.passes.InPlacePass):
    """See the module.

    Args:
        edges: by tensor, the inputs that read it through its pair: name of the node, and which.
        thresholds: largest absolute value to represent, for each tensor with a pair.
        weights: by the name of the convolution.
    """

    def __init__(
        self,
        edges: Mapping[str, Sequence[tuple[str, int]]],
        *,
        thresholds: Mapping[str, float],
        weights: Mapping[str, QuantizedWeight],
    ) -> None:
        self._edges = edges
        self._thresholds = thresholds
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the nodes, and remove the float weights that nothing reads any more."""
        graph = model.graph
        writer = _Writer(graph)
        nodes = {name_of(node): node for node in graph}
        for tensor, edges in self._edges.items():
            scale = np.array(self._thresholds[tensor] / _LEVELS, np.float32)
            restored = writer.activation(tensor, scale)
            for name, index in edges:
                nodes[name].replace_input_with(index, restored)
        for name, weight in self._weights.items():
            nodes[name].replace_input_with(1, writer.weight(nodes[name], weight))
        if self._edges or self._weights:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(self._edges or self._weights))


class _Writer:
    """Makes nodes and constants whose names nothing in the graph has."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = tensors_by_name(graph)
        self._taken = {name_of(node) for node in graph}.union(self._values)
        self._first = graph[0]

    def activation(self, tensor: str, scale: Array) -> ir.Value:
        """Insert a pair behind what makes a tensor; gives what the pair makes."""
        source = self._values[tensor]
        constants = [
            self._constant(f"{tensor}_scale", scale),
            self._constant(f"{tensor}_zero_point", np.array(0, np.int8)),
        ]
        outputs = [ir.val(self._name(f"{tensor}_{what}")) for what in ("quantized", "dequantized")]
        pair = [
            ir.node(op, [given, *constants], outputs=[made], name=self._name(f"{tensor}_{op}"))
            for op, given, made in zip(
                ("QuantizeLinear", "DequantizeLinear"), (source, outputs[0]), outputs, strict=True
            )
        ]
        producer = source.producer()
        if producer is None:
            self._graph.insert_before(self._first, pair)
        else:
            self._graph.insert_after(producer, pair)
        return outputs[1]

    def weight(self, conv: ir.Node, weight: QuantizedWeight) -> ir.Value:
        """Insert a DequantizeLinear before a convolution; gives what it makes."""
        tensor = name_of(input_of(conv, 1))
        inputs = [
            self._constant(f"{tensor}_quantized", weight.values),
            self._constant(f"{tensor}_scale", weight.scales),
            self._constant(f"{tensor}_zero_point", np.zeros(len(weight.scales), np.int8)),
        ]
        made = ir.val(self._name(f"{tensor}_dequantized"))
        name = self._name(f"{conv.name}_weight_DequantizeLinear")
        self._graph.insert_before(
            conv,
            ir.node("DequantizeLinear", inputs, {"axis": weight.axis}, outputs=[made], name=name),
        )
        return made

    def _constant(self, name: str, value: Array) -> ir.Value:
        return add_constant(self._graph, self._name(name), value)

    def _name(self, wanted: str) -> str:
        name = free_name(wanted, self._taken)
        self._taken.add(name)
        return name
