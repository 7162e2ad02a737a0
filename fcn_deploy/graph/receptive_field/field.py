"""The receptive field of a tensor: how far it sees, in which steps, and what makes it see all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from fcn_deploy.graph.receptive_field.operator_rules import follow, works_by_element
from fcn_deploy.graph.receptive_field.spans import Features, Span, UntraceableError
from fcn_deploy.graph.receptive_field.step import Step
from fcn_deploy.graph.receptive_field.values import compute_value
from fcn_deploy.graph.scan import GraphTensor, Node, OnnxGraph
from fcn_deploy.graph.scan.onnx_graph import constant_value

__all__ = ["ReceptiveField", "find_receptive_field"]

_ROUND_PX = 40_320
"""2^7 * 3^2 * 5 * 7: an image of this many pixels a side is halved and divided without rest."""

_SIZES = ((_ROUND_PX, 2 * _ROUND_PX), (3 * _ROUND_PX, _ROUND_PX))

_GROWN = (_SIZES[1][0] - _SIZES[0][0], _SIZES[1][1] - _SIZES[0][1])

_FLOAT_BYTES = 4

_Spans = tuple[Span | None, ...]
_Known = Mapping[str, Features]

_IN_PLACE = frozenset(
    {
        *("Identity", "Cast", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
        *("Clip", "Elu", "Add", "Sub", "Mul", "Div", "BatchNormalization", "Dropout", "Reshape"),
    }
)


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What the samples of a tensor [N, ..., h, w] depend on.

    Attributes:
        tensor: its name.
        rows, columns: along each axis of the image.
        alignment: (height, width) in px; an image that is cut at multiples of these has all its
            samples, of this tensor and of those before it, where the whole image has them.
        broken_by: phrases that name what reads the whole image all the same; `rows` and `columns`
            leave it out. Empty for a local network.
        bytes_per_px: floats held at once, by a count over the graph, for each pixel of the image.
    """

    tensor: str
    rows: Span
    columns: Span
    alignment: tuple[int, int]
    broken_by: tuple[str, ...]
    bytes_per_px: float
    _graph: OnnxGraph = field(repr=False, compare=False)
    _spans: Mapping[str, _Spans] = field(repr=False, compare=False)

    @property
    def stride(self) -> tuple[Fraction, Fraction]:
        """Pixels between samples, (height, width)."""
        return self.rows.stride, self.columns.stride

    @property
    def halo_px(self) -> tuple[int, int]:
        """Pixels beyond its own that a sample reads at most on one side, (height, width)."""
        rows, columns = (
            math.ceil(max(-span.low, span.high - span.stride + 1))
            for span in (self.rows, self.columns)
        )
        return max(rows, 0), max(columns, 0)

    def differs_at(self, size: tuple[int, int]) -> str | None:
        """Say what an image of (height, width) px does to the field.

        Features may be enlarged to the size of others. Where the image's size is no multiple of
        the strides this stretches them by a ratio that is not that of a part of the image. It may
        be padded to multiples of more than the strides, and a part of it by another amount.

        Returns:
            A phrase that names the first such place; None where the field holds.
        """
        larger = size[0] + self.alignment[0], size[1] + self.alignment[1]
        traces = [
            _Trace(self._graph, self.tensor, one, expected=self._spans) for one in (size, larger)
        ]
        try:
            found, grown = (trace.run() for trace in traces)
            if traces[0].differs_at is not None:
                return f"{traces[0].differs_at} in an image of {size[0]}x{size[1]}"
            for name in found:
                _check_growth(self._graph, name, found[name], grown[name], self.alignment)
        except UntraceableError as error:
            return str(error)
        return None

    def samples_at(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give how many (rows, columns) of samples an image of (height, width) px has."""
        target = _Trace(self._graph, self.tensor, size, expected=self._spans).run()[self.tensor]
        rows, columns = (
            next(
                count
                for count, span in zip(target.dims, target.spans, strict=True)
                if span is not None and span.axis == axis
            )
            for axis in (0, 1)
        )
        return rows, columns


def find_receptive_field(graph: OnnxGraph, tensor: str) -> ReceptiveField | str:
    """Compute a tensor's receptive field by following the graph from its image on.

    Args:
        graph: with one input, an image.

    Returns:
        The field, or a phrase that says why it cannot be told.
    """
    traces = [_Trace(graph, tensor, size) for size in _SIZES]
    try:
        one, other = (trace.run() for trace in traces)
        for name in one:
            _check_growth(graph, name, one[name], other[name], _GROWN)
    except UntraceableError as error:
        return str(error)
    spans = {span.axis: span for span in one[tensor].spans if span is not None}
    if len(spans) != 2:
        return "its output does not run along the image"
    alignment = tuple(
        math.lcm(
            *(
                span.stride.numerator
                for features in one.values()
                for span in features.spans
                if span is not None and span.axis == axis
            )
        )
        for axis in (0, 1)
    )
    held = _held_bytes(graph, one, traces[0].nodes, tensor)
    return ReceptiveField(
        tensor=tensor,
        rows=spans[0],
        columns=spans[1],
        alignment=(alignment[0], alignment[1]),
        broken_by=tuple(
            dict.fromkeys([*traces[0].broken_by, *_size_values(traces[0].nodes, one, other)])
        ),
        bytes_per_px=held / (_SIZES[0][0] * _SIZES[0][1]),
        _graph=graph,
        _spans={name: features.spans for name, features in one.items()},
    )


class _Trace:
    """Follows an image of one size through the part of a graph that makes one tensor.

    Attributes:
        expected: spans to go on with where others are found; None keeps those found.
        differs_at: the first operator where others were found, with what it does.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        tensor: str,
        size: tuple[int, int],
        *,
        expected: Mapping[str, _Spans] | None = None,
    ) -> None:
        self.graph = graph
        self.tensor = tensor
        self.size = size
        self.broken_by: list[str] = []
        self.expected = expected
        self.differs_at: str | None = None
        self.nodes = list(_ancestors(graph, tensor))

    def run(self) -> dict[str, Features]:
        """Give every tensor on the way that depends on the image.

        Raises:
            UntraceableError: an operator is unknown, or the sizes do not fit.
        """
        known = {self.graph.inputs[0].name: self._image()}
        for node in self.nodes:
            inputs = [self._input(known, name) for name in node.inputs]
            step = Step(node, inputs, self.graph.opset, self.broken_by)
            try:
                outputs = self._follow(step)
            except UntraceableError as error:
                raise UntraceableError(f"{node.op_type} {node.label} {error}") from None
            except (ValueError, IndexError, TypeError) as error:  # of a rank no such node takes
                raise UntraceableError(f"{node.op_type} {node.label} is malformed") from error
            for name, features in zip(node.outputs, outputs, strict=False):
                known[name] = self._as_expected(node, name, features)
        if self.tensor not in known:
            raise UntraceableError(f"{self.tensor!r} does not depend on the image")
        return known

    def _as_expected(self, node: Node, name: str, found: Features) -> Features:
        if self.expected is None or self.expected.get(name) in (None, found.spans):
            return found
        if self.differs_at is None:
            self.differs_at = f"{node.op_type} {node.label} works in another ratio"
        return replace(found, spans=self.expected[name])

    def _image(self) -> Features:
        if len(self.graph.inputs) != 1:
            raise UntraceableError("the graph has several inputs")
        image: GraphTensor = self.graph.inputs[0]
        dims = image.dims
        if dims is None or len(dims) != 4:
            raise UntraceableError("the graph's input is no image")
        rows, columns = (Span(axis, Fraction(1), Fraction(0), Fraction(0)) for axis in (0, 1))
        if dims[1] in (1, 3):
            return Features((1, int(dims[1]), *self.size), (None, None, rows, columns))
        channels = dims[3] if isinstance(dims[3], int) else 3
        return Features((1, *self.size, channels), (None, rows, columns, None))

    def _input(self, known: Mapping[str, Features], name: str) -> Features | None:
        if not name:
            return None
        if name in known:
            return known[name]
        stored = self.graph.initializers.get(name)
        if stored is None:
            raise UntraceableError(f"{name!r} is made from nothing")
        return Features.constant(stored.dims, stored.value)

    def _follow(self, step: Step) -> tuple[Features, ...]:
        node = step.node
        if node.op_type == "Constant":
            value = constant_value(node)
            if value is None:
                raise UntraceableError("holds a value that is not read")
            return (Features.constant(value.shape, value),)
        if node.op_type == "Shape":
            first, last = step.integer("start", 0), step.integer("end", len(step.first.dims))
            dims = np.array(step.first.dims[first:last], np.int64)
            return (Features.constant(dims.shape, dims),)
        given = [one.value if one is not None else None for one in step.inputs]
        value = compute_value(node, given)
        if value is not None:
            return (Features.constant(value.shape, value),)
        return follow(step)


def _ancestors(graph: OnnxGraph, tensor: str) -> Iterator[Node]:
    """Give the nodes that a tensor is made by, in an order in which they can run."""
    needed = {tensor}
    found = []
    for node in reversed(graph.nodes):
        if needed.intersection(filter(None, node.outputs)):
            needed.update(filter(None, node.inputs))
            found.append(node)
    return reversed(found)


def _size_values(nodes: list[Node], one: _Known, other: _Known) -> Iterator[str]:
    """Name operators that compute the image's features with a value that follows its size."""
    for node in nodes:
        made = one.get(node.outputs[0])
        if made is None or not made.is_spatial or not works_by_element(node):
            continue
        values = [(one[name].value, other[name].value) for name in node.inputs if name in one]
        if any(a is not None and b is not None and not np.array_equal(a, b) for a, b in values):
            yield f"{node.op_type} {node.label} takes a value that depends on the image's size"


def _check_growth(
    graph: OnnxGraph, name: str, one: Features, other: Features, grown: tuple[int, int]
) -> None:
    """Refuse a tensor whose size does not grow as the image does, by (height, width) px."""
    node = graph.producer(name)
    where = repr(name) if node is None else f"{node.op_type} {node.label}"
    if one.spans != other.spans:
        raise UntraceableError(f"{where} works in another ratio in an image of another size")
    for before, after, span in zip(one.dims, other.dims, one.spans, strict=True):
        if span is None:
            continue
        if (after - before) * span.stride != grown[span.axis]:
            raise UntraceableError(f"{where} does not follow the image's size")


def _held_bytes(
    graph: OnnxGraph, features: Mapping[str, Features], nodes: list[Node], tensor: str
) -> int:
    """Count what is held at once, at most, when every tensor is freed after its last use."""
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    last_use[tensor] = len(nodes)
    image = graph.inputs[0].name
    sizes = {
        name: math.prod(one.dims) * (1 if name == image else _FLOAT_BYTES)
        for name, one in features.items()
    }
    held = most = sizes[image]
    for index, node in enumerate(nodes):
        made = sum(sizes.get(name, 0) for name in node.outputs)
        done = [name for name in dict.fromkeys(node.inputs) if last_use.get(name) == index]
        freed = sum(sizes.get(name, 0) for name in done)
        most = max(most, held + (max(0, made - freed) if node.op_type in _IN_PLACE else made))
        held += made - freed
    return most
