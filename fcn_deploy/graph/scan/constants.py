"""Memory that a model would take before it sees any input.

Libraries compute at load time what depends on constants alone. A file of a hundred bytes can so
ask for gigabytes. Sizes are followed through the operators that grow tensors and through the
arithmetic that makes shapes; through other operators they are not, so this catches the usual bombs
and does not prove that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fcn_deploy.errors import UntrustedArtifactError
from fcn_deploy.graph.scan.onnx_graph import Node, OnnxGraph, constant_value
from fcn_deploy.graph.scan.tensor import shown
from fcn_deploy.names import Array

__all__ = ["check_constant_sizes"]

_Shape = tuple[int, ...]

_SAME_SHAPE = frozenset(
    {
        *("Identity", "Cast", "Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal", "Floor", "Ceil"),
        *(
            "Round",
            "Sign",
            "Relu",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Not",
            "Sin",
            "Cos",
            "Softmax",
            "Clip",
        ),
        *("Softplus", "HardSigmoid", "HardSwish", "IsNaN", "IsInf", "BitwiseNot", "EyeLike"),
        *("Dropout", "Bernoulli", "RandomNormalLike", "RandomUniformLike", "CumSum"),
    }
)
_BROADCAST = frozenset(
    {
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Mod",
            "Min",
            "Max",
            "Sum",
            "Mean",
            "And",
            "Or",
            "Xor",
        ),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where", "PRelu"),
        *("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    }
)
_RANDOM = frozenset(("RandomNormal", "RandomUniform"))
_ARITHMETIC: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
}
_SHAPES_ONLY = frozenset(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"))


def check_constant_sizes(graph: OnnxGraph, *, name: str, max_elements: int) -> None:
    """Refuse a graph whose operators make too much out of constants.

    Raises:
        UntrustedArtifactError: names the node, its size and the limit.
    """
    shapes: dict[str, _Shape] = {}
    values: dict[str, Array] = {}
    for tensor in graph.initializers.values():
        shapes[tensor.name] = tensor.dims
        if tensor.value is not None:
            values[tensor.name] = tensor.value
    for node in graph.nodes:
        output = node.outputs[0]
        value = _value(node, values)
        if value is not None:
            values[output] = value
        shape = value.shape if value is not None else _shape(node, shapes, values)
        if shape is None:
            continue
        count = math.prod(shape)
        if count > max_elements:
            raise UntrustedArtifactError(
                f"{name}: node {node.label} ({shown(node.op_type)}) makes {count} elements out of "
                f"constants alone; at most {max_elements} are allowed.",
                hint="Fold or shrink it: it would take this memory whenever the model is loaded.",
            )
        shapes[output] = shape


def _value(node: Node, values: dict[str, Array]) -> Array | None:
    """Compute a small constant, as far as shapes are made of such."""
    made = constant_value(node)
    if made is not None:
        return made
    first = values.get(node.inputs[0]) if node.inputs else None
    if first is None or first.dtype.kind not in "iuf" or first.size > 64:
        return None
    if node.op_type in _SHAPES_ONLY:
        return first.reshape(-1)
    if node.op_type == "Concat":
        parts = [values.get(name) for name in node.inputs[:64]]
        known = [part.reshape(-1) for part in parts if part is not None and part.size <= 64]
        return np.concatenate(known) if len(known) == len(node.inputs) else None
    operation = _ARITHMETIC.get(node.op_type)
    second = values.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if operation is None or second is None or second.dtype.kind not in "iuf" or second.size > 64:
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(operation(first.reshape(-1), second.reshape(-1)))
    except ValueError:  # shapes that do not fit: left to the library's own check
        return None


def _shape(node: Node, shapes: dict[str, _Shape], values: dict[str, Array]) -> _Shape | None:
    """Give the output's shape where it follows from constants alone."""
    if node.op_type in _RANDOM:
        shape = node.attributes.get("shape", ())
        return tuple(d for d in shape if isinstance(d, int)) if isinstance(shape, tuple) else None
    given = [values.get(name) for name in node.inputs]
    if node.op_type == "ConstantOfShape":
        return _sizes(given[0]) if given else None
    if node.op_type == "Range" and len(given) == 3:
        return _range_shape(given)
    known = [shapes[name] for name in node.inputs if name in shapes]
    if not known or len(known) != sum(map(bool, node.inputs)):
        return None
    if node.op_type in _SAME_SHAPE:
        return known[0]
    if node.op_type in _BROADCAST:
        return _broadcast(known)
    if node.op_type in ("Expand", "Tile") and len(given) == 2:
        sizes = _sizes(given[1])
        if sizes is None:
            return None
        if node.op_type == "Expand":
            return _broadcast([known[0], sizes])
        return (math.prod(known[0]) * math.prod(sizes),)
    if node.op_type == "MatMul" and len(known) == 2 and len(known[0]) == len(known[1]) == 2:
        return known[0][0], known[1][1]
    return None


def _sizes(value: Array | None) -> _Shape | None:
    if value is None or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        return None
    return tuple(max(0, int(size)) for size in value.reshape(-1))


def _range_shape(given: list[Array | None]) -> _Shape | None:
    numbers = [float(v.reshape(-1)[0]) for v in given if v is not None and v.size == 1]
    if len(numbers) != 3 or numbers[2] == 0 or not all(map(math.isfinite, numbers)):
        return None
    count = (numbers[1] - numbers[0]) / numbers[2]
    return (max(0, math.ceil(count)),) if math.isfinite(count) else None


def _broadcast(shapes: list[_Shape]) -> _Shape | None:
    """As NumPy does, for sizes and ranks of any magnitude."""
    result = [1] * max(map(len, shapes))
    for shape in shapes:
        for axis, size in enumerate(reversed(shape), start=1):
            if size != 1:
                result[-axis] = size if result[-axis] == 1 else max(result[-axis], size)
    return tuple(result)
