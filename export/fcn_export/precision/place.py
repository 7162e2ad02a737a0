"""Which tensors get Q/DQ: TensorRT's canonical placement, which OpenVINO runs as int8 too.

Inputs of convolutions, the shortcut of a residual Add, the inputs of a Concat that only quantised
convolutions read; nothing after the last convolution, and nothing on outputs. A transposed
convolution that interpolates bilinearly counts as no convolution: it is left as a Resize is.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fcn_deploy.graph.transposed import is_bilinear_kernel
from fcn_export.precision.passes.graph_view import GraphView, attributes

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Edge",
    "Placement",
    "classifier_nodes",
    "entry_nodes",
    "place",
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


def quantizable_nodes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Name the convolutions that can be quantised: those with constant weights."""
    view = GraphView(graph)
    return tuple(
        node.name
        for node in graph.node
        if _is_convolution(view, node)
        and view.array(node.input[1]) is not None
        and node.input[0] not in view.constants
    )


def classifier_nodes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Name the convolutions after which no other comes on the way to an output."""
    view = GraphView(graph)
    found: set[str] = set()
    queue = sorted(view.outputs)
    seen = set(queue)
    while queue:
        node = view.producers.get(queue.pop())
        if node is None:
            continue
        if _is_convolution(view, node):
            found.add(node.name)
            continue
        fresh = [name for name in _data_inputs(node) if name not in seen]
        seen.update(fresh)
        queue += fresh
    return tuple(node.name for node in graph.node if node.name in found)


def entry_nodes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Name the convolutions before which no other comes on the way from an input."""
    view = GraphView(graph)
    return tuple(
        node.name
        for node in graph.node
        if node.op_type in _WEIGHT_AXES
        and not any(
            view.producers[name].op_type in _WEIGHT_AXES
            for name in _ancestors(view, node.input[0])
            if name in view.producers
        )
    )


def place(graph: onnx.GraphProto, *, keep_float: Mapping[str, str] | None = None) -> Placement:
    """Decide where Q/DQ pairs go.

    Args:
        graph: float32, every node with a name of its own.
        keep_float: names of convolutions to leave alone, with the reason.
    """
    view = GraphView(graph)
    kept = dict(keep_float or {})
    nodes = {node.name: node for node in graph.node}
    chosen = [nodes[name] for name in quantizable_nodes(graph) if name not in kept]
    chosen_names = {node.name for node in chosen}
    edges: dict[str, list[Edge]] = {}
    groups = _Groups()
    for node in chosen:
        edges.setdefault(node.input[0], []).append((node.name, 0))
        groups.join(node.input[0])
    for node in graph.node:
        if node.op_type == "Add":
            index = _shortcut(view, node, chosen_names)
            if index is not None:
                edges.setdefault(node.input[index], []).append((node.name, index))
                groups.join(node.input[index])
        elif node.op_type == "Concat" and _feeds_only(view, node, chosen_names):
            for index, name in enumerate(node.input):
                edges.setdefault(name, []).append((node.name, index))
            groups.join(node.output[0], *node.input)
    return Placement(
        weights={node.name: _WEIGHT_AXES[node.op_type] for node in chosen},
        edges={name: tuple(dict.fromkeys(found)) for name, found in edges.items()},
        groups={name: groups.of(name) for name in edges},
        kept=kept,
    )


def _is_convolution(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.op_type != "ConvTranspose":
        return node.op_type in _WEIGHT_AXES
    weights = view.array(node.input[1])
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


def _feeds_only(view: GraphView, concat: onnx.NodeProto, chosen: Set[str]) -> bool:
    """Say whether a Concat of channels is read by quantised convolutions alone."""
    readers = view.consumers.get(concat.output[0], [])
    return (
        attributes(concat).get("axis") == 1
        and bool(readers)
        and concat.output[0] not in view.outputs
        and all(node.name in chosen and node.input[0] == concat.output[0] for node in readers)
        and not any(name in view.constants for name in concat.input)
    )


def _shortcut(view: GraphView, add: onnx.NodeProto, chosen: Set[str]) -> int | None:
    """Give the input of a residual Add that is its shortcut; None where the Add is no such.

    The other input is the convolution that the Add is fused into, so that must be quantised and
    read by nothing else. It is the one on the longer path from where both branches part.
    """
    lengths = _path_lengths(view, add)
    if lengths is None:
        return None
    first_is_longer = lengths[0] > lengths[1] or (
        lengths[0] == lengths[1] and _is_conv(view, add.input[0], chosen)
    )
    main, shortcut = (0, 1) if first_is_longer else (1, 0)
    conv = view.producers.get(add.input[main])
    fused = conv is not None and conv.name in chosen
    return shortcut if fused and view.only_consumer(add.input[main]) is not None else None


def _is_conv(view: GraphView, name: str, chosen: Set[str]) -> bool:
    node = view.producers.get(name)
    return node is not None and node.name in chosen


def _path_lengths(view: GraphView, add: onnx.NodeProto) -> tuple[int, int] | None:
    """Count the nodes from the last tensor that both inputs come from; None without one."""
    first, second = (_ancestors(view, name) for name in add.input)
    common = first & second
    if not common:
        return None
    order = {name: index for index, node in enumerate(view.graph.node) for name in node.output}
    parting = max(common, key=lambda name: order.get(name, -1))
    return (
        _longest_path(view, add.input[0], parting, first, order),
        _longest_path(view, add.input[1], parting, second, order),
    )


def _ancestors(view: GraphView, name: str) -> frozenset[str]:
    """Give a tensor and all computed tensors that its values come from."""
    seen = {name} if name not in view.constants else set()
    queue = list(seen)
    while queue:
        node = view.producers.get(queue.pop())
        if node is None:
            continue
        fresh = [n for n in _data_inputs(node) if n not in seen and n not in view.constants]
        seen.update(fresh)
        queue += fresh
    return frozenset(seen)


def _longest_path(
    view: GraphView, end: str, start: str, within: frozenset[str], order: Mapping[str, int]
) -> int:
    """Count the nodes of the longest path from `start` to `end`; 0 where they are one tensor."""
    lengths = {start: 0}
    for name in sorted(within, key=lambda tensor: order.get(tensor, -1)):
        node = view.producers.get(name)
        if node is None or name == start:
            continue
        known = [lengths[source] for source in _data_inputs(node) if source in lengths]
        if known:
            lengths[name] = 1 + max(known)
    return lengths.get(end, 0)


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    """Give the inputs that values come from: a Resize reads sizes too, a Shape reads only sizes."""
    if node.op_type in ("Shape", "Size"):
        return []
    if node.op_type in ("Resize", "Reshape", "Expand", "Slice", "Tile", "Pad"):
        return [node.input[0]]
    return [name for name in node.input if name]
