"""Find names and constants of an `onnx_ir` graph, and the nodes that make and read a value."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.names import Array

__all__ = [
    "add_constant",
    "array_of",
    "forget_inner_shapes",
    "free_name",
    "input_of",
    "is_constant",
    "name_of",
    "only_reader",
    "standard_opset",
    "take_proto",
    "tensors_by_name",
]


def name_of(item: ir.Node | ir.Value) -> str:
    """Give the name of a node or a value; empty where it has none."""
    return item.name or ""


def standard_opset(model: ir.Model) -> int:
    """Give the version of ONNX's own operators that a model is written in."""
    versions = model.opset_imports
    return next(versions[name] for name in ("", "ai.onnx") if name in versions)


def tensors_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Give every value of a graph by its name, without those of graphs inside its nodes."""
    found = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    return dict(found)


def input_of(node: ir.Node, position: int) -> ir.Value:
    """Give an input that a node must have.

    Raises:
        ValueError: it is left out.
    """
    value = node.inputs[position]
    if value is None:
        raise ValueError(f"input {position} of '{node.name}' ({node.op_type}) is left out")
    return value


def is_constant(value: ir.Value | None) -> bool:
    """Say whether a value is an initialiser, or made by a Constant."""
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def array_of(value: ir.Value | None) -> Array | None:
    """Give a constant's values, read-only, in its own shape and dtype.

    None for what is computed, or left out.
    """
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """Give the one node that reads a value once; None where several do, or it is an output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initialiser of the array's shape and dtype; its name must be free."""
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, tensor.dtype, list(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Give a name that is not taken: the one that is wanted, or that with a number."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def forget_inner_shapes(graph: ir.Graph) -> None:
    """Remove what a graph says of the tensors that its nodes make, but for its outputs."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None


def take_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialise a model that is not used any more, and let go of its weights at once.

    A graph is full of circles: left to the garbage collector, the weights would be there twice.
    """
    proto = ir.to_proto(model)
    for value in model.graph.initializers.values():
        value.const_value = None
    return proto
