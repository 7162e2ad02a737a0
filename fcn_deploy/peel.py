"""Which graphs may stop at their low-resolution scores, so that the runtime's head finishes.

A tail is peeled only where the same labels follow from the scores: it is one of those that
`find_tail` knows, and its Resize provably gives the image's own size, or a fixed multiple of the
scores'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from fcn_deploy.onnx_scan import GraphTensor, Node, OnnxGraph
from fcn_deploy.tail import Tail

__all__ = ["Coordinates", "PeeledTail", "peel_tail"]

Coordinates = Literal["half_pixel", "pytorch_half_pixel", "align_corners"]
"""ONNX's names for how a Resize maps an output pixel to the scores, as far as the head can."""


@dataclass(frozen=True, slots=True)
class PeeledTail:
    """What the runtime does in place of the graph's tail.

    Attributes:
        scores: the tensor to stop at, float [N, C, h, w].
        coordinates: of the upsampling that was peeled.
        factors: (height, width) of the labels over those of the scores; None where the labels
            have the image's size.
        threshold: of a single class's score, above which a pixel is of the class.
    """

    scores: str
    coordinates: Coordinates
    factors: tuple[int, int] | None
    threshold: float


def peel_tail(graph: OnnxGraph, tail: Tail | None) -> PeeledTail | str:
    """Decide whether a tail may be left to the runtime.

    Args:
        tail: as `find_tail` gives it for the output of labels.

    Returns:
        How, or a phrase that says why not.
    """
    if tail is None or tail.labels is None:
        return "the graph does not end in class ids made of scores"
    if tail.low_scores is None:
        return "nothing is upsampled before the labels"
    if (tail.class_axis, tail.low_class_axis) != (1, 1):
        return "the classes are not the second axis"
    argmax = next((node for node in graph.nodes if node.op_type == "ArgMax"), None)
    if argmax is not None and argmax.attributes.get("select_last_index", 0):
        return "ties go to the last class"
    if tail.coordinates not in get_args(Coordinates):
        return f"its upsampling has the coordinates {tail.coordinates}"
    threshold = _threshold(tail)
    if threshold is None:
        return "its threshold is not reached by any score"
    resize = graph.producer(tail.scores)
    if resize is None:
        return "its upsampling was not found"
    coordinates = cast(Coordinates, tail.coordinates)
    if _gives_image_size(graph, resize):
        return PeeledTail(tail.low_scores, coordinates, None, threshold)
    factors = _whole_factors(graph, resize)
    if factors is None:
        return "its upsampling is not known to give the image's size"
    return PeeledTail(tail.low_scores, coordinates, factors, threshold)


def _threshold(tail: Tail) -> float | None:
    """Give the threshold of the scores themselves; None where none of them can reach it."""
    if tail.threshold is None:
        return 0.0
    if tail.activation != "sigmoid":
        return tail.threshold
    if not 0 < tail.threshold < 1:
        return None
    return math.log(tail.threshold / (1 - tail.threshold))


def _whole_factors(graph: OnnxGraph, resize: Node) -> tuple[int, int] | None:
    """Read constant, whole scales: others would round, and round differently."""
    scales = graph.constant(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is None or resize.attributes.get("axes") not in (None, (2, 3)):
        return None
    height, width = (float(value) for value in scales.reshape(-1)[-2:])
    if scales.size == 4 and not (scales.reshape(-1)[:2] == 1).all():
        return None
    if height != int(height) or width != int(width) or min(height, width) < 1:
        return None
    return int(height), int(width)


def _gives_image_size(graph: OnnxGraph, resize: Node) -> bool:
    if len(resize.inputs) < 4 or len(graph.inputs) != 1:
        return False
    axes = resize.attributes.get("axes")
    if axes not in (None, (2, 3)):
        return False
    image = graph.inputs[0]
    size = _Sizes(graph, image).vector(resize.inputs[3])
    expected = _height_and_width(image)
    return size is not None and expected is not None and tuple(size[-2:]) == expected


@dataclass(frozen=True, slots=True)
class _Axis:
    """A size that is only known when an image comes: that of one of its axes."""

    index: int


_Size = int | _Axis | None  # None: unknown


def _height_and_width(image: GraphTensor) -> tuple[_Size, _Size] | None:
    dims = image.dims
    if dims is None or len(dims) != 4:
        return None
    first = 2 if dims[1] in (1, 3) else 1
    height, width = (
        size if isinstance(size, int) else _Axis(first + i)
        for i, size in enumerate(dims[first : first + 2])
    )
    return height, width


# what keeps the shape of its first input, whatever it does to the values
_SAME_SHAPE = frozenset(("Cast", "Identity", "Clip", "Relu"))
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div"))
_UNKNOWN: tuple[_Size, ...] = (None,) * 4
_SAME_VECTOR = frozenset(("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"))


class _Sizes:
    """Follows sizes through the part of a graph that only moves them, for so many steps."""

    def __init__(self, graph: OnnxGraph, image: GraphTensor) -> None:
        self.graph = graph
        self.image = image
        self._steps_left = 500  # real tails need a dozen; a made-up one could double at each step

    def vector(self, name: str) -> list[_Size] | None:
        """Give the numbers in a small integer tensor, row by row; None where not understood."""
        self._steps_left -= 1
        constant = self.graph.constant(name)
        if constant is not None:
            return [int(v) for v in constant.reshape(-1)] if constant.dtype.kind in "iu" else None
        node = self.graph.producer(name)
        if node is None or self._steps_left < 0:
            return None
        if node.op_type in _SAME_VECTOR:
            return self.vector(node.inputs[0])
        if node.op_type == "Concat":
            parts = [self.vector(one) for one in node.inputs]
            return None if None in parts else [v for part in parts for v in part or ()]
        if node.op_type == "Shape":
            dims = list(self.dims(node.inputs[0]))
            start, end = node.attributes.get("start", 0), node.attributes.get("end", len(dims))
            return dims[cast(int, start) : cast(int, end)]
        if node.op_type in ("Gather", "Slice"):
            return self._part(node)
        return None

    def _part(self, node: Node) -> list[_Size] | None:
        whole = self.vector(node.inputs[0])
        if whole is None:
            return None
        picked = [self.graph.constant(one) for one in node.inputs[1:]]
        if not picked or any(value is None or value.size == 0 for value in picked):
            return None
        numbers = [np.asarray(value).reshape(-1) for value in picked]
        try:
            if node.op_type == "Gather":
                return [whole[int(i)] for i in numbers[0]]
            step = int(numbers[3][0]) if len(numbers) > 3 else 1
            return whole[int(numbers[0][0]) : int(numbers[1][0]) : step]
        except (IndexError, ValueError):
            return None

    def dims(self, name: str) -> Sequence[_Size]:
        """Give the shape of a tensor, as far as it is the image with other values or order.

        Other tensors have four unknown sizes: whichever are taken, none is mistaken for the
        image's.
        """
        self._steps_left -= 1
        if name == self.image.name:
            return [
                size if isinstance(size, int) else _Axis(i)
                for i, size in enumerate(self.image.dims or ())
            ]
        node = self.graph.producer(name)
        if node is None or self._steps_left < 0:
            return _UNKNOWN
        if node.op_type in _SAME_SHAPE:
            return self.dims(node.inputs[0])
        if node.op_type in _BROADCAST:
            return self._broadcast(node)
        if node.op_type == "Transpose":
            dims, order = self.dims(node.inputs[0]), node.attributes.get("perm")
            if not isinstance(order, tuple) or len(order) != len(dims):
                return _UNKNOWN
            return [dims[cast(int, axis)] for axis in order]
        if node.op_type == "Gather":
            return self._gathered(node)
        return _UNKNOWN

    def _broadcast(self, node: Node) -> Sequence[_Size]:
        """Follow the side that is no constant; a constant may only vary over channels."""
        constants = [self.graph.initializers.get(one) for one in node.inputs]
        sides = [one for one, c in zip(node.inputs, constants, strict=True) if c is None]
        if len(sides) != 1:
            return _UNKNOWN
        dims = self.dims(sides[0])
        stored = next(c for c in constants if c is not None)
        few = sum(size != 1 for size in stored.dims) <= 1 and len(stored.dims) <= len(dims)
        return dims if few else _UNKNOWN

    def _gathered(self, node: Node) -> Sequence[_Size]:
        dims, indices = self.dims(node.inputs[0]), self.graph.constant(node.inputs[1])
        axis = node.attributes.get("axis", 0)
        if indices is None or indices.ndim != 1 or not isinstance(axis, int):
            return _UNKNOWN
        return [len(indices) if i == axis % len(dims) else size for i, size in enumerate(dims)]
