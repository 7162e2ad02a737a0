"""What a network sees, in the numbers that a manifest holds and people read."""

from __future__ import annotations

import math
from fractions import Fraction

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.graph.receptive_field import find_receptive_field
from fcn_deploy.graph.scan import OnnxGraph
from fcn_deploy.graph.tail import find_tail

__all__ = ["summarize_field"]


def summarize_field(graph: OnnxGraph) -> SeenByNetwork | str:
    """Compute stride, offset and receptive field of a segmentation graph.

    Returns:
        The numbers, or a phrase that says why they cannot be told.
    """
    output = graph.outputs[0].name
    tail = find_tail(graph)
    field = find_receptive_field(graph, (tail and tail.low_scores) or output)
    if isinstance(field, str):
        return field
    labels = find_receptive_field(graph, tail.scores if tail is not None else output)
    if isinstance(labels, str):
        return labels
    if any(stride != 1 for stride in labels.stride):
        return "its labels do not have the image's size"
    both = (field.rows, field.columns)
    ends = (labels.rows, labels.columns)
    return SeenByNetwork(
        stride=(float(both[0].stride), float(both[1].stride)),
        offset=(float(both[0].low + both[0].high) / 2, float(both[1].low + both[1].high) / 2),
        size=(_pixels(both[0].high - both[0].low), _pixels(both[1].high - both[1].low)),
        before=(max(0, math.ceil(-ends[0].low)), max(0, math.ceil(-ends[1].low))),
        behind=(max(0, math.ceil(ends[0].high)), max(0, math.ceil(ends[1].high))),
        alignment=labels.alignment,
        whole_image=labels.broken_by,
    )


def _pixels(reach: Fraction) -> int:
    return math.floor(reach) + 1
