"""Choose which tensors get Q/DQ: TensorRT's canonical placement, which OpenVINO runs as int8 too.

Inputs of convolutions, the shortcut of a residual Add, the inputs of a Concat that only quantised
convolutions read; nothing after the last convolution, and nothing on outputs. A transposed
convolution that interpolates bilinearly counts as no convolution: it is left as a Resize is.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from fcn_deploy.graph.transposed import is_bilinear_kernel
from fcn_export.onnx_values import (
    array_of,
    input_of,
    is_constant,
    name_of,
    only_reader,
)

__all__ = [
    "Edge",
    "Placement",
    "classifier_nodes",
    "entry_nodes",
    "place_qdq",
    "quantizable_nodes",
]

Edge = tuple[str, int]
"""A node's name and which of its inputs."""

_WEIGHT_AXES: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1}
"""Axis of the output channels in the weights."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Q/DQ pairs go.

    Attributes:
        weights: axis of the output channels, by the name of the convolution.
        edges: inputs that read their tensor through a Q/DQ pair, by tensor; one pair a tensor.
        groups: for each tensor with a pair, the tensors that must share its scale, itself with
            them.
        kept: convolutions that compute in float, with the reason.
    """

    weights: Mapping[str, int]
    edges: Mapping[str, tuple[Edge, ...]]
    groups: Mapping[str, frozenset[str]]
    kept: Mapping[str, str] = field(default_factory=dict)


def quantizable_nodes(graph: ir.Graph) -> tuple[str, ...]:
    """Name the convolutions that can be quantised: those with constant weights."""
    return tuple(
        name_of(node)
        for node in graph
        if _is_convolution(node)
        and is_constant(node.inputs[1])
        and not is_constant(input_of(node, 0))
    )


def classifier_nodes(graph: ir.Graph) -> tuple[str, ...]:
    """Name the convolutions after which no other comes on the way to an output."""
    found: set[ir.Node] = set()
    queue = list(graph.outputs)
    seen = set(queue)
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        if _is_convolution(node):
            found.add(node)
            continue
        fresh = [value for value in _data_inputs(node) if value not in seen]
        seen.update(fresh)
        queue += fresh
    return tuple(name_of(node) for node in graph if node in found)


def entry_nodes(graph: ir.Graph) -> tuple[str, ...]:
    """Name the convolutions before which no other comes on the way from an input."""
    return tuple(
        name_of(node)
        for node in graph
        if node.op_type in _WEIGHT_AXES
        and not any(
            before is not None and before.op_type in _WEIGHT_AXES
            for before in (value.producer() for value in _ancestors(input_of(node, 0)))
        )
    )


def place_qdq(graph: ir.Graph, *, keep_float: Mapping[str, str] | None = None) -> Placement:
    """Decide where Q/DQ pairs go.

    Args:
        graph: float32, every node with a name of its own.
        keep_float: names of convolutions to leave alone, with the reason.
    """
    kept = dict(keep_float or {})
    able = set(quantizable_nodes(graph)).difference(kept)
    chosen = {node: None for node in graph if name_of(node) in able}
    edges: dict[str, list[Edge]] = {}
    groups = _Groups()
    for node in chosen:
        edges.setdefault(name_of(input_of(node, 0)), []).append((name_of(node), 0))
        groups.join(name_of(input_of(node, 0)))
    order = {value: index for index, node in enumerate(graph) for value in node.outputs}
    for node in graph:
        if node.op_type == "Add":
            index = _shortcut(node, chosen.keys(), order)
            if index is not None:
                name = name_of(input_of(node, index))
                edges.setdefault(name, []).append((name_of(node), index))
                groups.join(name)
        elif node.op_type == "Concat" and _feeds_only(node, chosen.keys()):
            names = [name_of(input_of(node, index)) for index in range(len(node.inputs))]
            for index, name in enumerate(names):
                edges.setdefault(name, []).append((name_of(node), index))
            groups.join(name_of(node.outputs[0]), *names)
    return Placement(
        weights={name_of(node): _WEIGHT_AXES[node.op_type] for node in chosen},
        edges={name: tuple(dict.fromkeys(found)) for name, found in edges.items()},
        groups={name: groups.of(name) for name in edges},
        kept=kept,
    )


def _is_convolution(node: ir.Node) -> bool:
    if node.op_type != "ConvTranspose":
        return node.op_type in _WEIGHT_AXES
    weights = array_of(node.inputs[1])
    return weights is None or not is_bilinear_kernel(weights)


class _Groups:
    """Sets of tensors that share a scale; overlapping sets become one."""

    def __init__(self) -> None:
        self._of: dict[str, frozenset[str]] = {}

    def join(self, *names: str) -> None:
        whole = frozenset(names).union(*(self._of.get(name, frozenset()) for name in names))
        for name in whole:
            self._of[name] = whole

    def of(self, name: str) -> frozenset[str]:
        return self._of[name]


def _feeds_only(concat: ir.Node, chosen: Set[ir.Node]) -> bool:
    """Say whether a Concat of channels is read by quantised convolutions alone."""
    joined = concat.outputs[0]
    readers = joined.consumers()
    return (
        concat.attributes.get_int("axis") == 1
        and bool(readers)
        and not joined.is_graph_output()
        and all(node in chosen and node.inputs[0] is joined for node in readers)
        and not any(is_constant(value) for value in concat.inputs)
    )


def _shortcut(add: ir.Node, chosen: Set[ir.Node], order: Mapping[ir.Value, int]) -> int | None:
    """Give the input of a residual Add that is its shortcut; None where the Add is no such.

    The other input is the convolution that the Add is fused into, so that must be quantised and
    read by nothing else. It is the one on the longer path from where both branches part.
    """
    first, second = input_of(add, 0), input_of(add, 1)
    lengths = _path_lengths(first, second, order)
    if lengths is None:
        return None
    first_is_longer = lengths[0] > lengths[1] or (
        lengths[0] == lengths[1] and first.producer() in chosen
    )
    main, shortcut = (first, 1) if first_is_longer else (second, 0)
    fused = main.producer() in chosen and only_reader(main) is not None
    return shortcut if fused else None


def _path_lengths(
    first: ir.Value, second: ir.Value, order: Mapping[ir.Value, int]
) -> tuple[int, int] | None:
    """Count the nodes from the last tensor that both come from; None without one."""
    before = _ancestors(first), _ancestors(second)
    common = before[0] & before[1]
    if not common:
        return None
    parting = max(common, key=lambda value: order.get(value, -1))
    return (
        _longest_path(first, parting, before[0], order),
        _longest_path(second, parting, before[1], order),
    )


def _ancestors(value: ir.Value) -> frozenset[ir.Value]:
    """Give a tensor and all computed tensors that its values come from."""
    queue = [] if is_constant(value) else [value]
    seen = set(queue)
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        fresh = [v for v in _data_inputs(node) if v not in seen and not is_constant(v)]
        seen.update(fresh)
        queue += fresh
    return frozenset(seen)


def _longest_path(
    end: ir.Value, start: ir.Value, within: Set[ir.Value], order: Mapping[ir.Value, int]
) -> int:
    """Count the nodes of the longest path from `start` to `end`; 0 where they are one tensor."""
    lengths = {start: 0}
    for value in sorted(within, key=lambda value: order.get(value, -1)):
        node = value.producer()
        if node is None or value is start:
            continue
        known = [lengths[source] for source in _data_inputs(node) if source in lengths]
        if known:
            lengths[value] = 1 + max(known)
    return lengths.get(end, 0)


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """Give the inputs that values come from: a Resize reads sizes too, a Shape reads only sizes."""
    if node.op_type in ("Shape", "Size"):
        return []
    if node.op_type in ("Resize", "Reshape", "Expand", "Slice", "Tile", "Pad"):
        return [input_of(node, 0)]
    return [value for value in node.inputs if value is not None]
