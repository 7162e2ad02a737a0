"""Who makes, reads and holds which tensor of an ONNX graph: the index of the INT8 passes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from fcn_deploy.names import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphView", "attributes", "name_nodes"]


class GraphView:
    """An index over a graph, valid until the graph is changed.

    Attributes:
        producers: for each tensor, the node that makes it.
        consumers: for each tensor, the nodes that read it, in the graph's order; a node that reads
            it twice is there twice.
        constants: initialisers by name, and outputs of Constant nodes.
        outputs: names of the graph's outputs.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                if name:
                    self.consumers[name].append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = attributes(node).get("value")
                if value is not None:
                    self.constants[node.output[0]] = value
        self.outputs = {value.name for value in graph.output}

    def array(self, name: str) -> Array | None:
        """Give a constant's values, read-only; None for what is computed."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        if tensor is None:
            return None
        array: Array = numpy_helper.to_array(tensor)
        return array

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Give the one node that reads a tensor; None where several do, or it is an output."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Give a node's attributes as Python values."""
    from onnx import helper

    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, in place: the first of a name keeps it."""
    taken: set[str] = set()
    for node in graph.node:
        base = node.name or f"{node.op_type}_{next(iter(node.output), '')}"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        taken.add(name)
