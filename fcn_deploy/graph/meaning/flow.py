"""What is known of a tensor on its way to an output, and where the rules read it from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from fcn_deploy.graph.scan import Node, OnnxGraph
from fcn_deploy.names import Array

__all__ = [
    "Flow",
    "Trace",
    "constant",
    "integers",
    "is_constant",
    "layout_of",
    "option",
    "scalar",
    "unknown",
    "weight_dims",
]

_LAYOUTS = {
    2: ("nc", "nc"),
    3: ("ncs", "nsc"),
    4: ("nchw", "nhwc"),
    5: ("ncdhw", "ndhwc"),
}
_CONSTANT_PASSES = frozenset(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
_MAX_CONSTANT_STEPS = 8


@dataclass(frozen=True, slots=True)
class Flow:
    """What a tensor holds.

    Attributes:
        kind: ``"bounded"`` is a sigmoid or softmax, scaled and shifted; ``"exp"`` the exponential
            of logits, ``"1+exp"`` one more.
        found: the operator that decided, or why the meaning is unknown.
        layout: a letter an axis: n, c (classes), h, w, d, s (pixels in one), 1; c is left out
            where the axis of a single class was dropped. None where it is unknown.
        rank: number of axes.
        classes: of ids, how many there can be.
        low, high: of bounded values.
        total: sum of bounded values over the classes, where it is the same everywhere; NaN where
            it was and is no more; None of a sigmoid.
        offset: what was added to logits.
        partial: one of several logits, which alone says nothing.
        overshoots: an interpolation may go beyond low and high.
        quantised: as integers, not yet turned back.
        through: operators that kept the meaning, in the order in which they run.
    """

    kind: Literal["logits", "bounded", "log_softmax", "exp", "1+exp", "ids", "unknown"]
    found: str
    layout: str | None = None
    rank: int | None = None
    classes: int | None = None
    low: float = 0.0
    high: float = 1.0
    total: float | None = None
    offset: float = 0.0
    partial: bool = False
    overshoots: bool = False
    quantised: bool = False
    through: tuple[str, ...] = field(default=())

    def laid_out(self, layout: str) -> Flow:
        """Give the same values on other axes."""
        return replace(self, layout=layout, rank=len(layout))

    def scattered(self, rank: int | None = None) -> Flow:
        """Give the same values on axes that are not known."""
        return replace(self, layout=None, rank=rank)

    def axis(self, given: object) -> int | None:
        """Give an operator's axis counted from the front; None where it is not known."""
        if not isinstance(given, int) or isinstance(given, bool):
            return None
        if self.rank is None:
            return given if given >= 0 else None
        return given % self.rank if -self.rank <= given < self.rank else None

    def letter(self, axis: int | None) -> str | None:
        """Give what lies along an axis."""
        return None if self.layout is None or axis is None else self.layout[axis]

    def has_no_class_axis(self) -> bool:
        """Say whether the axis of a single class, or of ids, was dropped."""
        return self.layout is not None and "c" not in self.layout


def unknown(reason: str, flow: Flow | None = None) -> Flow:
    """Give a tensor of which no more is known than its axes."""
    if flow is None:
        return Flow("unknown", reason)
    return Flow("unknown", reason, layout=flow.layout, rank=flow.rank, classes=flow.classes)


def layout_of(rank: int, class_axis: int) -> str | None:
    """Give the usual order of axes with the classes second or last; None for others."""
    if rank not in _LAYOUTS or class_axis not in (1, rank - 1):
        return None
    return _LAYOUTS[rank][class_axis != 1]


def integers(values: object) -> tuple[int, ...] | None:
    """Read an attribute of whole numbers; None where it is something else."""
    if not isinstance(values, tuple) or not all(isinstance(value, int) for value in values):
        return None
    return tuple(int(value) for value in values)


class Trace(Protocol):
    """Where rules read the graph from."""

    graph: OnnxGraph

    def flow(self, name: str) -> Flow:
        """Give what a tensor holds."""
        ...

    def sizes(self, name: str) -> tuple[int | None, ...] | None:
        """Give the numbers in a tensor of sizes, None where only the run decides."""
        ...


def constant(graph: OnnxGraph, name: str, *, steps: int = _MAX_CONSTANT_STEPS) -> Array | None:
    """Read a constant's numbers, also where they are cast, reshaped or dequantised.

    Returns:
        Of any shape and dtype; None where it is no constant.
    """
    found = graph.constant(name)
    node = graph.producer(name)
    if found is not None or node is None or steps == 0 or not node.inputs:
        return found
    if node.op_type in _CONSTANT_PASSES:
        return constant(graph, node.inputs[0], steps=steps - 1)
    if node.op_type == "DequantizeLinear":
        parts = [constant(graph, one, steps=steps - 1) for one in node.inputs if one]
        if any(part is None or part.size != 1 for part in parts):
            return None
        value, scale, *zero = (float(part.reshape(-1)[0]) for part in parts if part is not None)
        return np.array((value - sum(zero)) * scale)
    return None


def is_constant(graph: OnnxGraph, name: str) -> bool:
    """Say whether a tensor is stored in the file, its value kept by the scan or not."""
    node = graph.producer(name)
    for _ in range(_MAX_CONSTANT_STEPS):
        if node is None or node.op_type not in (*_CONSTANT_PASSES, "DequantizeLinear"):
            break
        name = node.inputs[0]
        node = graph.producer(name)
    return name in graph.initializers or (node is not None and node.op_type == "Constant")


def scalar(values: Array | None) -> float | None:
    """Give the one number that a constant of any shape and dtype holds everywhere.

    Returns:
        None where it holds several.
    """
    if values is None or values.size == 0 or values.dtype.kind not in "fiu":
        return None
    first = float(values.reshape(-1)[0])
    return first if math.isfinite(first) and bool((values == values.reshape(-1)[0]).all()) else None


def weight_dims(graph: OnnxGraph, name: str) -> tuple[int, ...] | None:
    """Give the shape of a stored weight, also where it is dequantised or cast."""
    for _ in range(_MAX_CONSTANT_STEPS):
        stored = graph.initializers.get(name)
        if stored is not None:
            return stored.dims
        value = graph.constant(name)
        if value is not None:
            return value.shape
        node = graph.producer(name)
        if node is None or node.op_type not in ("DequantizeLinear", "Cast", "Identity"):
            return None
        name = node.inputs[0]
    return None


def option(trace: Trace, node: Node, index: int, attribute: str) -> tuple[int, ...] | None:
    """Read whole numbers that newer opsets have as an input and older ones as an attribute."""
    if len(node.inputs) > index and node.inputs[index]:
        found = constant(trace.graph, node.inputs[index])
        if found is None or found.dtype.kind not in "iu" or found.size > 64:
            return None
        return tuple(int(value) for value in found.reshape(-1))
    return integers(node.attributes.get(attribute))
