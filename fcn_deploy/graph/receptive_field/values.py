"""The arithmetic by which graphs compute sizes, on small constant tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fcn_deploy.graph.scan import Node
from fcn_deploy.graph.scan.schema import ELEMENT_TYPES
from fcn_deploy.names import Array

__all__ = ["compute_value"]

_MAX_ELEMENTS = 64


def _divide(one: Array, other: Array) -> Array:
    if one.dtype.kind != "f":
        return np.trunc(one / other).astype(one.dtype)  # sizes are far below 2^53
    return np.asarray(one / other)


def _cast(node: Node, value: Array) -> Array:
    code = node.attributes.get("to")
    kind = ELEMENT_TYPES.get(code) if isinstance(code, int) else None
    if kind is None or not kind.native:
        raise ValueError(f"no cast to {code}")
    return value.astype(kind.name)


def _gather(node: Node, value: Array, indices: Array) -> Array:
    return np.take(value, indices, axis=_integer(node, "axis", 0))


def _slice(_: Node, value: Array, *bounds: Array) -> Array:
    starts, ends, *more = (bound.reshape(-1) for bound in bounds)
    axes = more[0] if more else np.arange(len(starts))
    steps = more[1] if len(more) > 1 else np.ones(len(starts), np.int64)
    picked: list[slice] = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked[int(axis)] = slice(int(start), int(end), int(step))
    return value[tuple(picked)]


def _concat(node: Node, *parts: Array) -> Array:
    return np.concatenate(parts, axis=_integer(node, "axis", 0))


def _squeeze(node: Node, value: Array, *axes: Array) -> Array:
    chosen = _axes(node, axes)
    return np.squeeze(value, axis=tuple(chosen) if chosen else None)


def _unsqueeze(node: Node, value: Array, *axes: Array) -> Array:
    return np.expand_dims(value, tuple(_axes(node, axes)))


def _reshape(_: Node, value: Array, shape: Array) -> Array:
    return value.reshape([int(size) for size in shape.reshape(-1)])


def _axes(node: Node, given: Sequence[Array]) -> list[int]:
    stored = node.attributes.get("axes", ())
    named = [axis for axis in stored if isinstance(axis, int)] if isinstance(stored, tuple) else []
    return [int(axis) for axis in given[0].reshape(-1)] if given else named


def _integer(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


_OPERATORS: dict[str, Callable[..., Array]] = {
    "Identity": lambda _, value: value,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Add": lambda _, one, other: one + other,
    "Sub": lambda _, one, other: one - other,
    "Mul": lambda _, one, other: one * other,
    "Div": lambda _, one, other: _divide(one, other),
    "Mod": lambda _, one, other: np.mod(one, other),
    "Neg": lambda _, value: -value,
    "Floor": lambda _, value: np.floor(value),
    "Ceil": lambda _, value: np.ceil(value),
    "Sqrt": lambda _, value: np.sqrt(value),
    "Max": lambda _, *values: np.maximum.reduce(np.broadcast_arrays(*values)),
    "Min": lambda _, *values: np.minimum.reduce(np.broadcast_arrays(*values)),
    "Equal": lambda _, one, other: one == other,
    "Where": lambda _, which, one, other: np.asarray(np.where(which, one, other)),
    "ReduceProd": lambda _, value, *__: np.prod(value, keepdims=True),
}


def compute_value(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    """Compute what an operator makes of known values, of any shapes and dtypes.

    Returns:
        None where an input is unknown or large, or the operator is none of those that sizes are
        made with.
    """
    operator = _OPERATORS.get(node.op_type)
    known = [value for value in inputs if value is not None and value.size <= _MAX_ELEMENTS]
    if operator is None or not known or len(known) != len(inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(operator(node, *known))
    except (ValueError, TypeError, IndexError):  # not as the operator is defined: not ours to tell
        return None
