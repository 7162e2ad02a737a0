"""Find the nodes that see the image, those that prepare it, and those of the head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from fcn_deploy.graph.transposed import is_bilinear_kernel
from fcn_export.graph_spec import SCORES
from fcn_export.onnx_values import array_of

__all__ = ["GraphSections", "find_sections"]

# give numbers about a tensor, not of it
_ABOUT = frozenset(("Shape", "Size"))

# normalisation and colour: what moves, scales or sums a frame's own values
_FRAME_OPS = frozenset((
    *("Cast", "Transpose", "Gather", "Slice", "Split", "Concat", "Identity"),
    *("Reshape", "Squeeze", "Unsqueeze", "Flatten"),
    *("Add", "Sub", "Mul", "Div", "ReduceSum", "ReduceMean"),
))  # fmt: skip

# between scores and labels, where no tensor is called `scores`
_LABEL_OPS = frozenset((
    *("Cast", "Identity", "Squeeze", "Gather", "Slice", "ArgMax", "Greater", "GreaterOrEqual"),
    *("Less", "Not", "Softmax", "LogSoftmax", "Sigmoid"),
))  # fmt: skip

Nodes = frozenset[ir.Node]


@dataclass(frozen=True, slots=True)
class GraphSections:
    """Sets of nodes.

    Attributes:
        image: depend on the image's values. The others compute with sizes and constants.
        frame: of these, prepare the frame: nothing of the network comes before them.
        head: of these, make the outputs out of the scores, with the last upsampling.
    """

    image: Nodes
    frame: Nodes
    head: Nodes

    def between(self, graph: ir.Graph) -> list[ir.Node]:
        """Give the network's own nodes, in order: neither frame nor head."""
        own = self.image - self.frame - self.head
        return [node for node in graph if node in own]


def find_sections(graph: ir.Graph) -> GraphSections:
    """Divide a graph whose nodes are sorted."""
    image = _depending(graph, graph.inputs)
    return GraphSections(image, _frame(graph, image), _head(graph) & image)


def _depending(graph: ir.Graph, values: Iterable[ir.Value]) -> Nodes:
    """Find the nodes that use values, directly or not."""
    seen = set(values)
    found = set()
    for node in graph:
        if node.op_type not in _ABOUT and seen.intersection(node.inputs):
            found.add(node)
            seen.update(node.outputs)
    return frozenset(found)


def _frame(graph: ir.Graph, image: Nodes) -> Nodes:
    found: set[ir.Node] = set()
    for node in graph:
        before = {value.producer() for value in node.inputs if value is not None}
        if node in image and node.op_type in _FRAME_OPS and before & image <= found:
            found.add(node)
    return frozenset(found)


def _head(graph: ir.Graph) -> Nodes:
    scores = next((v for node in graph for v in node.outputs if v.name == SCORES), None)
    if scores is None:
        return _walk_back(graph)
    return _depending(graph, [scores]) | _last_upsampling(scores.producer())


def _last_upsampling(node: ir.Node | None) -> Nodes:
    """Find what enlarges the scores, with the Slices that crop them; empty where nothing does."""
    found: set[ir.Node] = set()
    while node is not None:
        found.add(node)
        if _enlarges(node):
            return frozenset(found)
        node = _maker(node.inputs[0]) if node.op_type == "Slice" else None
    return frozenset()


def _enlarges(node: ir.Node) -> bool:
    """Say whether a node is a Resize, or a transposed convolution that does the same."""
    if node.op_type != "ConvTranspose":
        return node.op_type == "Resize"
    weights = array_of(node.inputs[1])
    return weights is not None and is_bilinear_kernel(weights)


def _walk_back(graph: ir.Graph) -> Nodes:
    """Go back from the outputs over what makes labels, up to the last upsampling."""
    found: set[ir.Node] = set()
    queue = [value.producer() for value in graph.outputs]
    while queue:
        node = queue.pop()
        if node is None or node in found:
            continue
        enlarges = _enlarges(node)
        if not enlarges and node.op_type not in _LABEL_OPS:
            continue
        found.add(node)
        if not enlarges:
            queue.append(_maker(node.inputs[0]))
    return frozenset(found)


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
