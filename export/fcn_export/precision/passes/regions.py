"""Which nodes see the image, which prepare it, and which turn scores into the outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcn_deploy.graph.transposed import is_bilinear_kernel
from fcn_export.graph_spec import SCORES

if TYPE_CHECKING:
    import onnx

__all__ = ["Regions", "find_regions"]

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


@dataclass(frozen=True, slots=True)
class Regions:
    """Sets of nodes, by their index in the graph.

    Attributes:
        image: depend on the image's values. The others compute with sizes and constants.
        frame: of these, prepare the frame: nothing of the network comes before them.
        head: of these, make the outputs out of the scores, with the last upsampling.
    """

    image: frozenset[int]
    frame: frozenset[int]
    head: frozenset[int]


def find_regions(graph: onnx.GraphProto) -> Regions:
    """Divide a graph whose nodes are sorted."""
    image = _depending(graph, {value.name for value in graph.input})
    return Regions(image, _frame(graph, image), _head(graph, image))


def _depending(graph: onnx.GraphProto, tensors: Iterable[str]) -> frozenset[int]:
    """Find the nodes that use values of tensors, directly or not."""
    seen = set(tensors)
    found = set()
    for index, node in enumerate(graph.node):
        if seen.intersection(node.input):
            if node.op_type in _ABOUT:
                continue
            found.add(index)
            seen.update(node.output)
    return frozenset(found)


def _frame(graph: onnx.GraphProto, image: frozenset[int]) -> frozenset[int]:
    made = {name for index in image for name in graph.node[index].output}
    frame = {value.name for value in graph.input}
    found = set()
    for index in sorted(image):
        node = graph.node[index]
        outside = [name for name in node.input if name in made and name not in frame]
        if node.op_type in _FRAME_OPS and not outside:
            found.add(index)
            frame.update(node.output)
    return frozenset(found)


def _head(graph: onnx.GraphProto, image: frozenset[int]) -> frozenset[int]:
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    if SCORES in producers:
        last = _last_upsampling(graph, producers)
        return (_depending(graph, {SCORES}) | last) & image
    return frozenset(_walk_back(graph, producers)) & image


def _last_upsampling(graph: onnx.GraphProto, producers: dict[str, int]) -> set[int]:
    """Find what enlarges the scores, with the Slices that crop them; empty where nothing does."""
    found: set[int] = set()
    index = producers.get(SCORES)
    while index is not None:
        node = graph.node[index]
        found.add(index)
        if _enlarges(graph, node):
            return found
        index = producers.get(node.input[0]) if node.op_type == "Slice" else None
    return set()


def _enlarges(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Say whether a node is a Resize, or a transposed convolution that does the same."""
    if node.op_type != "ConvTranspose":
        return node.op_type == "Resize"
    from onnx import numpy_helper

    stored = (tensor for tensor in graph.initializer if tensor.name == node.input[1])
    weights = next(stored, None)
    return weights is not None and is_bilinear_kernel(numpy_helper.to_array(weights))


def _walk_back(graph: onnx.GraphProto, producers: dict[str, int]) -> set[int]:
    """Go back from the outputs over what makes labels, up to the last upsampling."""
    found: set[int] = set()
    names = [value.name for value in graph.output]
    while names:
        index = producers.get(names.pop())
        if index is None or index in found:
            continue
        node = graph.node[index]
        enlarges = _enlarges(graph, node)
        if not enlarges and node.op_type not in _LABEL_OPS:
            continue
        found.add(index)
        if not enlarges:
            names.append(node.input[0])
    return found
