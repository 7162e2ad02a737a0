"""Which sizes inside a graph are known, or known to be those of another tensor, before it runs.

Exporters ask the image for its shape and pass the numbers on through chains of small operators.
`SizeTracer` follows these back. What it cannot follow is unknown; it never guesses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.graph.scan import GraphTensor, Node, OnnxGraph
from fcn_deploy.names import Array

__all__ = ["AxisOf", "Size", "SizeTracer"]


@dataclass(frozen=True, slots=True)
class AxisOf:
    """A size that is known only when the graph runs: that of a tensor along one of its axes."""

    tensor: str
    axis: int


Size = int | AxisOf | None
"""None: unknown."""

_MAX_STEPS = 120
"""Tensors that are followed: real tails need two dozen. Bounds the recursion, too."""

_MAX_NUMBERS = 64
"""Elements of a tensor of sizes; a made-up graph could double them at each step."""

_SAME_SHAPE = frozenset(
    {
        *("BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Dropout", "Identity"),
        *("LeakyRelu", "LogSoftmax", "Neg", "QuantizeLinear", "Relu", "Sigmoid", "Softmax"),
    }
)
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div"))
_TO_THE_END = (1 << 31) - 1  # exporters write the largest int32 or int64
_INTEGERS = frozenset((6, 7))  # TensorProto.DataType: int32, int64
_SAME_NUMBERS = frozenset(("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"))


class SizeTracer:
    """Follows shapes, and tensors of sizes, back to the image and to the weights.

    Args:
        image: the graph's input, with four axes.
    """

    def __init__(self, graph: OnnxGraph, image: GraphTensor) -> None:
        self._graph = graph
        self._image = image
        self._steps_left = _MAX_STEPS
        self._known_dims: dict[str, tuple[Size, ...] | None] = {}
        self._known_numbers: dict[str, Array | None] = {}

    def dims(self, name: str) -> tuple[Size, ...] | None:
        """Give the shape of a tensor; None where its rank is unknown."""
        if name not in self._known_dims:
            self._steps_left -= 1
            self._known_dims[name] = None if self._steps_left < 0 else self._find_dims(name)
        return self._known_dims[name]

    def numbers(self, name: str) -> Array | None:
        """Give what a small integer tensor holds; None if unknown.

        Returns:
            An array of the tensor's shape and dtype object, which holds a `Size` each.
        """
        if name not in self._known_numbers:
            self._steps_left -= 1
            found = None if self._steps_left < 0 else self._find_numbers(name)
            self._known_numbers[name] = found
        return self._known_numbers[name]

    def _find_dims(self, name: str) -> tuple[Size, ...] | None:
        if name == self._image.name:
            return self._own_dims(self._image)
        stored = self._graph.initializers.get(name)
        if stored is not None:
            return stored.dims
        constant = self._graph.constant(name)
        if constant is not None:
            return constant.shape
        node = self._graph.producer(name)
        first = node is not None and node.outputs[0] == name
        found = self._dims_by_operator(node) if node is not None and first else None
        if found is None:
            described = self._graph.tensor(name)
            found = None if described is None else self._own_dims(described)
        return found

    @staticmethod
    def _own_dims(tensor: GraphTensor) -> tuple[Size, ...] | None:
        if tensor.dims is None:
            return None
        return tuple(
            size if isinstance(size, int) else AxisOf(tensor.name, axis)
            for axis, size in enumerate(tensor.dims)
        )

    def _dims_by_operator(self, node: Node) -> tuple[Size, ...] | None:
        if node.op_type in _SAME_SHAPE:
            return self.dims(node.inputs[0])
        if node.op_type in _BROADCAST:
            return self._broadcast([self.dims(one) for one in node.inputs])
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._convolved(node)
        if node.op_type == "Resize":
            return self._resized(node)
        if node.op_type not in ("Transpose", "Gather", "Slice"):
            return None
        dims = self.dims(node.inputs[0])
        if dims is None:
            return None
        if node.op_type == "Transpose":
            axes = _integers(node.attributes.get("perm"))
            return tuple(dims[i] for i in axes) if sorted(axes) == [*range(len(dims))] else None
        return self._gathered(node, dims) if node.op_type == "Gather" else self._cut(node, dims)

    @staticmethod
    def _broadcast(shapes: Sequence[tuple[Size, ...] | None]) -> tuple[Size, ...] | None:
        """As NumPy does; a size that is unknown stays so unless it meets a one."""
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(shapes):
            return None
        rank = max(map(len, known))
        padded = [(1,) * (rank - len(shape)) + shape for shape in known]
        merged: list[Size] = []
        for sizes in zip(*padded, strict=True):
            several = {size for size in sizes if size != 1}
            fixed = [size for size in several if isinstance(size, int)]
            if len(several) < 2:
                merged.append(next(iter(several), 1))
            else:  # of a known and an unknown size, the unknown may be one
                merged.append(fixed[0] if len(fixed) == 1 else None)
        return tuple(merged)

    def _convolved(self, node: Node) -> tuple[Size, ...] | None:
        """Give rank and channels of a convolution's output; its other sizes are its own."""
        weights = self.dims(node.inputs[1])
        if weights is None or len(weights) != 4:
            return None
        channels, group = weights[0], node.attributes.get("group", 1)
        if node.op_type == "ConvTranspose":
            channels = None
            if isinstance(weights[1], int) and isinstance(group, int):
                channels = weights[1] * group
        name = node.outputs[0]
        return (AxisOf(name, 0), channels, AxisOf(name, 2), AxisOf(name, 3))

    def _resized(self, node: Node) -> tuple[Size, ...] | None:
        """Give rank and channels of an enlarged tensor, where these stay; the rest is its own."""
        dims = self.dims(node.inputs[0])
        if dims is None or len(dims) != 4:
            return None
        _, _, scales_name, sizes_name = (*node.inputs, "", "", "")[:4]
        kept = node.attributes.get("axes") in ((2, 3), (-2, -1))
        if not kept and "axes" not in node.attributes:
            scales = None if sizes_name else self._graph.constant(scales_name)
            sizes = self.numbers(sizes_name) if sizes_name else None
            kept = (scales is not None and scales.shape == (4,) and scales[1] == 1) or (
                sizes is not None and sizes.shape == (4,) and sizes[1] == dims[1]
            )
        name = node.outputs[0]
        return (AxisOf(name, 0), dims[1], AxisOf(name, 2), AxisOf(name, 3)) if kept else None

    def _gathered(self, node: Node, dims: tuple[Size, ...]) -> tuple[Size, ...] | None:
        indices, axis = self._graph.constant(node.inputs[1]), node.attributes.get("axis", 0)
        if indices is None or indices.ndim > 1 or not isinstance(axis, int):
            return None
        if not -len(dims) <= axis < len(dims):
            return None
        axis %= len(dims)
        return (*dims[:axis], *((indices.size,) if indices.ndim else ()), *dims[axis + 1 :])

    def _cut(self, node: Node, dims: tuple[Size, ...]) -> tuple[Size, ...] | None:
        slices = self._slices(node, len(dims))
        if slices is None:
            return self._cut_somewhere(node, dims)
        return tuple(
            size
            if slices[axis] == slice(None)
            else len(range(size)[slices[axis]])
            if isinstance(size, int)
            else None
            for axis, size in enumerate(dims)
        )

    def _cut_somewhere(self, node: Node, dims: tuple[Size, ...]) -> tuple[Size, ...] | None:
        """Give the sizes of the axes that a Slice of unknown bounds leaves as they are."""
        axes = self._graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None or axes.dtype.kind != "i":
            return None
        cut = {int(axis) % len(dims) for axis in axes.reshape(-1)}
        name = node.outputs[0]
        return tuple(AxisOf(name, i) if i in cut else size for i, size in enumerate(dims))

    def _find_numbers(self, name: str) -> Array | None:
        constant = self._graph.constant(name)
        if constant is not None:
            if constant.dtype.kind not in "iu" or constant.size > _MAX_NUMBERS:
                return None
            return constant.astype(object)
        node = self._graph.producer(name)
        if node is None or len(node.inputs) > _MAX_NUMBERS:
            return None
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type == "Concat":
            return self._joined(node)
        if node.op_type in ("Gather", "Slice", *_SAME_NUMBERS):
            numbers = self.numbers(node.inputs[0])
            try:
                found = None if numbers is None else self._moved(node, numbers)
            except (ValueError, IndexError):  # axes or positions that are not there
                return None
            return found if found is not None and found.size <= _MAX_NUMBERS else None
        return None

    def _shape(self, node: Node) -> Array | None:
        dims = self.dims(node.inputs[0])
        start, end = node.attributes.get("start", 0), node.attributes.get("end", math.inf)
        if dims is None or not isinstance(start, int):
            return None
        part = dims[start : end if isinstance(end, int) else None]
        return _objects(part)

    def _joined(self, node: Node) -> Array | None:
        parts = [self.numbers(one) for one in node.inputs]
        known = [part for part in parts if part is not None]
        axis = node.attributes.get("axis", 0)
        total = sum(part.size for part in known)
        if len(known) != len(parts) or total > _MAX_NUMBERS or not isinstance(axis, int):
            return None
        try:
            return np.concatenate(known, axis=axis)
        except ValueError:  # scalars, or shapes that do not fit
            return None

    def _moved(self, node: Node, numbers: Array) -> Array | None:
        if node.op_type == "Cast":
            return numbers if node.attributes.get("to") in _INTEGERS else None
        if node.op_type == "Identity":
            return numbers
        if node.op_type == "Gather":
            indices, axis = self._graph.constant(node.inputs[1]), node.attributes.get("axis", 0)
            if indices is None or indices.dtype.kind != "i" or not isinstance(axis, int):
                return None
            return np.asarray(np.take(numbers, indices, axis=axis), object)
        if node.op_type == "Slice":
            slices = self._slices(node, numbers.ndim)
            return None if slices is None else numbers[slices]
        if node.op_type == "Reshape":
            shape = self._graph.constant(node.inputs[1])
            if shape is None or shape.dtype.kind != "i" or (shape == 0).any():
                return None
            return numbers.reshape([int(size) for size in shape.reshape(-1)])
        axes = self._axes(node)
        if node.op_type == "Unsqueeze":
            return None if axes is None else np.expand_dims(numbers, axes)
        given = len(node.inputs) > 1 or "axes" in node.attributes
        return numbers.squeeze(axes) if axes is not None or not given else None

    def _axes(self, node: Node) -> tuple[int, ...] | None:
        if len(node.inputs) > 1:  # from opset 13 on
            stored = self._graph.constant(node.inputs[1])
            return None if stored is None else tuple(int(axis) for axis in stored.reshape(-1))
        return _integers(node.attributes.get("axes")) or None

    def _slices(self, node: Node, rank: int) -> tuple[slice, ...] | None:
        """Give what Slice takes of each axis; None where that is not constant."""
        starts, ends, axes, steps = (*node.inputs[1:], "", "", "")[:4]
        first = self._graph.constant(starts)
        if first is None:
            return None
        columns = [
            first,
            self._graph.constant(ends),
            self._graph.constant(axes) if axes else np.arange(first.size),
            self._graph.constant(steps) if steps else np.ones(first.size, int),
        ]
        rows = [one.reshape(-1).tolist() for one in columns if one is not None and one.size <= rank]
        if len(rows) < len(columns) or len({len(row) for row in rows}) > 1:
            return None
        slices = [slice(None)] * rank
        for start, end, axis, step in zip(*rows, strict=True):
            if not -rank <= axis < rank or step == 0:
                return None
            if (start, step) != (0, 1) or end < _TO_THE_END:
                slices[axis] = slice(start, end, step)
        return tuple(slices)


def _integers(values: object) -> tuple[int, ...]:
    """Give an attribute's numbers; empty where it is not there or something else."""
    if not isinstance(values, tuple):
        return ()
    return tuple(value for value in values if isinstance(value, int))


def _objects(sizes: Sequence[Size]) -> Array:
    array = np.empty(len(sizes), object)
    array[:] = sizes
    return array
