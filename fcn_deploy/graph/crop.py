"""Which part of a tensor of scores a chain of Slices leaves, as crops to the image's size do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcn_deploy.graph.scan import Node, OnnxGraph
from fcn_deploy.graph.sizes import Size, SizeTracer

__all__ = ["Crop", "find_crop"]

_TO_THE_END = (1 << 31) - 1  # exporters write the largest int32 or int64


@dataclass(frozen=True, slots=True)
class Crop:
    """What is left of rows and columns.

    Attributes:
        lead: (height, width) that are cut off before the first.
        to_image: (height, width), whether what is left ends after as many as the image has.
    """

    lead: tuple[int, int] = (0, 0)
    to_image: tuple[bool, bool] = (False, False)


def find_crop(
    graph: OnnxGraph, slices: Sequence[Node], *, image_size: tuple[Size, Size], tracer: SizeTracer
) -> Crop | None:
    """Follow Slices of tensors [N, C, H, W]; None where they leave something else.

    Args:
        slices: in the order in which they run.
    """
    lead, to_image = [0, 0], [False, False]
    for node in slices:
        bounds = [*node.inputs[1:], "", "", ""][:4]
        starts, axes = graph.constant(bounds[0]), graph.constant(bounds[2])
        steps = graph.constant(bounds[3])
        ends = tracer.numbers(bounds[1])
        if starts is None or ends is None or (steps is not None and (steps != 1).any()):
            return None
        if (axes is None) != (not bounds[2]) or (steps is None) != (not bounds[3]):
            return None
        firsts, lasts = starts.reshape(-1).tolist(), ends.reshape(-1).tolist()
        named = range(len(firsts)) if axes is None else axes.reshape(-1).tolist()
        if not len(firsts) == len(lasts) == len(named):
            return None
        for first, last, axis in zip(firsts, lasts, named, strict=True):
            place = axis % 4 - 2
            whole = isinstance(last, int) and last >= _TO_THE_END
            if place < 0:
                if first != 0 or not whole:
                    return None
                continue
            if first < 0 or (first > 0 and to_image[place]):
                return None
            lead[place] += first
            if not whole:
                if first != 0 or last is None or last != image_size[place]:
                    return None
                to_image[place] = True
    return Crop((lead[0], lead[1]), (to_image[0], to_image[1]))
