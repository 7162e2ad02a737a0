"""Find where a classifier makes one vector of its features, by flattening or by pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import fx

from fcn_models.nodes import axes_of, operation

__all__ = ["FLATTENING", "REDUCTIONS", "Flattening", "Pooling", "read_flattening"]

Pooling = Literal["average", "max"]

FLATTENING = ("flatten", "view", "reshape", "squeeze", "getitem")
"""Operations that may give the same numbers another shape."""

REDUCTIONS: dict[str, Pooling] = {"mean": "average", "amax": "max"}
"""Operations that may sum up axes, and how."""


@dataclass(frozen=True, slots=True)
class Flattening:
    """The features that a classifier makes one vector of.

    Attributes:
        source: the features [N, C, h, w].
        pooling: how the vector [N, C] sums up all cells; None where it is [N, C * h * w].
    """

    source: fx.Node
    pooling: Pooling | None


def read_flattening(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> Flattening | None:
    """Say what features a node makes a vector of, in one step or two; None where it does not."""
    steps = [node]
    if len(shapes.get(node, ())) != 2:
        return None
    while True:
        source = steps[-1].args[0] if steps[-1].args else None
        if not isinstance(source, fx.Node) or len(shapes.get(source, ())) not in (3, 4):
            return None
        if len(shapes[source]) == 4:
            break
        steps.append(source)
    channels, height, width = shapes[source][1:]
    poolings = set()
    for step in steps:
        given, made = shapes[step.all_input_nodes[0]], shapes[step]
        pooling = REDUCTIONS.get(operation(step))
        if pooling is not None and min(axes_of(step, len(given)), default=0) >= 2:
            poolings.add(pooling)
        elif operation(step) not in FLATTENING or given[0] != made[0] or prod(given) != prod(made):
            return None
        if len(made) == 3 and made[1] != channels:
            return None
    if not poolings or (height, width) == (1, 1):
        return Flattening(source, None)
    if len(poolings) > 1 or shapes[node][1] != channels:
        return None
    return Flattening(source, poolings.pop())
