"""Which graphs may stop at their low-resolution scores, so that the runtime's head finishes.

A tail is peeled only where the same labels follow from the scores: it is one of those that
`find_tail` knows, and its Resize provably gives the image's own size, or a fixed multiple of the
scores'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from fcn_deploy.onnx_scan import GraphTensor, Node, OnnxGraph
from fcn_deploy.sizes import AxisOf, Size, SizeTracer
from fcn_deploy.tail import Tail
from fcn_deploy.tensors import Array

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
    resize = graph.producer(tail.scores)
    if tail.low_scores is None or resize is None:
        return "nothing is upsampled before the labels"
    if (tail.class_axis, tail.low_class_axis) != (1, 1):
        return "the classes are not the second axis"
    if tail.coordinates not in get_args(Coordinates):
        return f"its upsampling has the coordinates {tail.coordinates}"
    image = _image(graph)
    if image is None:
        return "its input is no image"
    tracer = SizeTracer(graph, image)
    obstacle = _obstacle(tail, tracer.dims(tail.low_scores))
    if obstacle is not None:
        return obstacle
    factors = _whole_factors(graph, resize)
    if factors is None and not _gives_image_size(tracer, image, resize):
        return "its upsampling is not known to give the image's size"
    coordinates = cast(Coordinates, tail.coordinates)
    return PeeledTail(tail.low_scores, coordinates, factors, _score_threshold(tail))


def _obstacle(tail: Tail, low_dims: tuple[Size, ...] | None) -> str | None:
    """Say what of activation, classes and ties the runtime's head does otherwise."""
    channels = None if low_dims is None or len(low_dims) != 4 else low_dims[1]
    if not isinstance(channels, int):
        return "the number of its classes is not known"
    if tail.labels == "argmax":
        if channels < 2:
            return "it takes the best of a single class"
        if tail.tie == "higher":
            return "ties go to the last class"
        # float32's sigmoid is one from 17 on: there ArgMax takes the first class, not the best
        return "its sigmoid makes high scores equal" if tail.activation == "sigmoid" else None
    if channels != 1:
        return "it compares several classes with a threshold"
    if tail.activation == "softmax":
        return "its threshold is on a softmax"
    if tail.threshold is None or not math.isfinite(tail.threshold):
        return "its threshold is not a number"
    if tail.activation == "sigmoid" and not 0 < tail.threshold < 1:
        return "its threshold is not reached by any score"
    return None


def _score_threshold(tail: Tail) -> float:
    """Give the threshold that a single class's score must exceed; 0 where there is none."""
    if tail.threshold is None:
        return 0.0
    threshold = tail.threshold
    if tail.activation == "sigmoid":
        threshold = math.log(threshold / (1 - threshold))
    if tail.tie == "lower":
        return threshold
    # "not below" is "above the next lower number"; next to zero, the next that is not subnormal
    number = np.float32(threshold)
    return float(min(np.nextafter(number, np.float32(-np.inf)), number - np.finfo(np.float32).tiny))


def _image(graph: OnnxGraph) -> GraphTensor | None:
    if len(graph.inputs) != 1 or len(graph.inputs[0].dims or ()) != 4:
        return None
    return graph.inputs[0]


def _whole_factors(graph: OnnxGraph, resize: Node) -> tuple[int, int] | None:
    """Read constant, whole scales: others would round, and round differently."""
    _, _, scales_name, sizes_name = (*resize.inputs, "", "")[:4]
    scales = None if sizes_name else graph.constant(scales_name)
    factors = None if scales is None else _of_height_and_width(resize, scales.reshape(-1))
    if factors is None or scales is None or not (scales.reshape(-1)[:-2] == 1).all():
        return None
    height, width = (float(factor) for factor in factors)
    if not (height.is_integer() and width.is_integer() and min(height, width) >= 1):
        return None
    return int(height), int(width)


def _of_height_and_width(resize: Node, values: Array) -> Array | None:
    """Pick the last two of Resize's sizes or scales."""
    axes = resize.attributes.get("axes", (0, 1, 2, 3))
    if axes not in ((0, 1, 2, 3), (2, 3), (-2, -1)):
        return None
    return values[-2:] if len(values) == len(cast("tuple[int, ...]", axes)) else None


def _gives_image_size(tracer: SizeTracer, image: GraphTensor, resize: Node) -> bool:
    if len(resize.inputs) < 4 or not resize.inputs[3]:
        return False
    sizes = tracer.numbers(resize.inputs[3])
    dims, low_dims = tracer.dims(image.name), tracer.dims(resize.inputs[0])
    if sizes is None or sizes.ndim != 1 or dims is None or low_dims is None:
        return False
    found = _of_height_and_width(resize, sizes)
    first = 2 if dims[1] in (1, 3) else 1
    if found is None or tuple(found) != dims[first : first + 2]:
        return False
    if len(sizes) == 2:
        return True
    # a batch is never resized, by whichever tensor it is told; classes could be
    batch = isinstance(sizes[0], AxisOf) and sizes[0].axis == 0
    return (batch or sizes[0] in (dims[0], low_dims[0])) and sizes[1] == low_dims[1]
