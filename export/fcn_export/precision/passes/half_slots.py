"""Tell which inputs and outputs of an operator may be float16, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["HalfSlots", "half_slots"]

_HALF = "tensor(float16)"

# float16 is allowed here, but these are places and sizes, not values
_KEPT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}


@dataclass(frozen=True, slots=True)
class HalfSlots:
    """For each input and output of a node, whether it is float16 where the node is.

    Attributes:
        outputs: True only where the type follows from an input's.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def half_slots(node: ir.Node, opset: int) -> HalfSlots | None:
    """Ask the schema of a node's operator.

    Returns:
        None where the operator is none of ONNX's own.
    """
    if node.domain:
        return None
    return _slots(node.op_type, opset, len(node.inputs), len(node.outputs))


@cache
def _slots(op_type: str, opset: int, inputs: int, outputs: int) -> HalfSlots | None:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {
        constraint.type_param_str: _HALF in constraint.allowed_type_strs
        for constraint in schema.type_constraints
    }
    kept = _KEPT_INPUTS.get(op_type, ())
    taken = [_type_name(schema.inputs, index) for index in range(inputs)]
    given = [_type_name(schema.outputs, index) for index in range(outputs)]
    bound = {name for index, name in enumerate(taken) if index not in kept}
    if op_type == "DequantizeLinear":  # since opset 23 a variable of its own, which follows scale
        given = [taken[1]]
    return HalfSlots(
        tuple(allowed.get(name, False) and i not in kept for i, name in enumerate(taken)),
        tuple(allowed.get(name, False) and name in bound for name in given),
    )


def _type_name(formal: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """Give the type variable of a position; the last one of a list may stand for many."""
    return str(formal[min(index, len(formal) - 1)].type_str)
