"""Find the nodes of a traced graph in which the traced size has become a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.names import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["BakedNode", "describe_baked", "find_baked_nodes"]

_MAX_ELEMENTS = 64  # sizes, pads and axes are short; weights do not depend on the size
# operators that only carry a size to the node that uses it
_SIZE_CARRIERS = {
    "Concat",
    "Cast",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Slice",
    "Gather",
    "Constant",
}


@dataclass(frozen=True, slots=True)
class BakedNode:
    """A node that came out differently when the same model was traced at another size.

    Attributes:
        name, op_type: of the node that uses the constant.
        first, second: the constant in either trace, as text.
    """

    name: str
    op_type: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"'{self.name}' ({self.op_type}: {self.first} or {self.second})"


def find_baked_nodes(first: onnx.ModelProto, second: onnx.ModelProto) -> tuple[BakedNode, ...]:
    """Compare two traces of one model at different sizes, node by node.

    Returns:
        The nodes whose attributes or small constant inputs differ, in graph order; where the
        traces have different nodes, the first that differs.
    """
    found: dict[str, BakedNode] = {}
    constants = _constants(first), _constants(second)
    for ours, theirs in zip(first.graph.node, second.graph.node, strict=False):
        if ours.op_type != theirs.op_type:
            node = BakedNode(ours.name, ours.op_type, ours.op_type, theirs.op_type)
            return (*found.values(), node)
        difference = _difference(ours, theirs, constants)
        if difference is not None:
            user = _user_of(first.graph, ours)
            found.setdefault(user.name, BakedNode(user.name, user.op_type, *difference))
    return tuple(found.values())


def describe_baked(
    nodes: tuple[BakedNode, ...], first: tuple[int, int], second: tuple[int, int]
) -> str:
    """Say which nodes hold which sizes, for a message; (height, width) in px of either trace."""
    listed = ", ".join(str(node) for node in nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    sizes = f"{first[0]}x{first[1]} or {second[0]}x{second[1]}"
    return f"traced at {sizes} px, the graph holds the size as a constant in {listed}{more}"


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    from onnx import numpy_helper

    small = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) <= _MAX_ELEMENTS
        and tensor.data_location != tensor.EXTERNAL
    }
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                small[node.output[0]] = numpy_helper.to_array(attribute.t)
    return {name: value for name, value in small.items() if value.size <= _MAX_ELEMENTS}


def _difference(
    ours: onnx.NodeProto,
    theirs: onnx.NodeProto,
    constants: tuple[dict[str, Array], dict[str, Array]],
) -> tuple[str, str] | None:
    from onnx import helper

    attributes = [
        {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.HasField("g")}
        for node in (ours, theirs)
    ]
    for name, value in attributes[0].items():
        other = attributes[1].get(name)
        if ours.op_type != "Constant" and not _equal(value, other):
            return f"{name} {value}", f"{other}"
    for mine, other in zip(ours.input, theirs.input, strict=False):
        first, second = constants[0].get(mine), constants[1].get(other)
        if first is not None and second is not None and not _equal(first, second):
            return str(first.tolist()), str(second.tolist())
    return None


def _equal(first: object, second: object) -> bool:
    if hasattr(first, "SerializeToString") and hasattr(second, "SerializeToString"):
        return bool(first.SerializeToString() == second.SerializeToString())
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def _user_of(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto:
    """Follow a size to the node that uses it: users know a Resize, not the Concat before it."""
    for _ in range(len(graph.node)):
        if node.op_type not in _SIZE_CARRIERS:
            return node
        following = next((n for n in graph.node if node.output[0] in n.input), None)
        if following is None:
            return node
        node = following
    return node
