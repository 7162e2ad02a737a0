"""In which order to give out what is reduced from many inner tensors of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["deepest_first"]


def deepest_first(graph: onnx.GraphProto, names: Iterable[str]) -> list[str]:
    """Sort tensors by the node that makes them, the last node first; a graph's inputs come last.

    ONNX Runtime computes the last of a graph's outputs first. Reductions added in this order are
    computed as the network goes, and each tensor is freed behind it; added the other way round,
    the whole network runs first, with every tensor held.
    """
    position = {name: index for index, node in enumerate(graph.node) for name in node.output}
    return sorted(names, key=lambda name: position.get(name, -1), reverse=True)
