"""Find the nodes of a traced graph in which the traced size has become a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fcn_export.onnx_values import array_of

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.names import Array

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
    graphs = ir.from_proto(first).graph, ir.from_proto(second).graph
    for ours, theirs in zip(*graphs, strict=False):
        if ours.op_type != theirs.op_type:
            node = BakedNode(ours.name or "", ours.op_type, ours.op_type, theirs.op_type)
            return (*found.values(), node)
        difference = _difference(ours, theirs)
        if difference is not None:
            user = _user_of(ours)
            node = BakedNode(user.name or "", user.op_type, *difference)
            found.setdefault(node.name, node)
    return tuple(found.values())


def describe_baked(
    nodes: tuple[BakedNode, ...], first: tuple[int, int], second: tuple[int, int]
) -> str:
    """Say which nodes hold which sizes, for a message; (height, width) in px of either trace."""
    listed = ", ".join(str(node) for node in nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    sizes = f"{first[0]}x{first[1]} or {second[0]}x{second[1]}"
    return f"traced at {sizes} px, the graph holds the size as a constant in {listed}{more}"


def _difference(ours: ir.Node, theirs: ir.Node) -> tuple[str, str] | None:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for name, attribute in ours.attributes.items():
        other = theirs.attributes.get(name)
        if attribute.type in graphs or ours.op_type == "Constant":
            continue
        if other is None or not _equal(attribute.value, other.value):
            return f"{name} {attribute.value}", f"{None if other is None else other.value}"
    for mine, other_input in zip(ours.inputs, theirs.inputs, strict=False):
        first, second = _small_constant(mine), _small_constant(other_input)
        if first is not None and second is not None and not np.array_equal(first, second):
            return str(first.tolist()), str(second.tolist())
    return None


def _equal(first: object, second: object) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def _small_constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return array_of(value) if tensor is not None and tensor.size <= _MAX_ELEMENTS else None


def _user_of(node: ir.Node) -> ir.Node:
    """Follow a size to the node that uses it: users know a Resize, not the Concat before it."""
    while node.op_type in _SIZE_CARRIERS:
        following = node.outputs[0].consumers()
        if not following:
            break
        node = following[0]
    return node
