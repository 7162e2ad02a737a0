"""Which graphs may stop at their low-resolution scores, so that the runtime's head finishes.

A tail is peeled only where the same labels follow from the scores: it is one of those that
`find_tail` knows, and what enlarges provably gives the image's own size, or a fixed multiple of the
scores', of which the image's size may be cut out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np

from fcn_deploy.artifact.output_meaning import Coordinates, Finish
from fcn_deploy.graph.crop import Crop, find_crop
from fcn_deploy.graph.scan import GraphTensor, Node, OnnxGraph
from fcn_deploy.graph.sizes import AxisOf, Size, SizeTracer
from fcn_deploy.graph.tail import Tail
from fcn_deploy.graph.transposed import find_bilinear_transposed
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.names import Array

__all__ = ["PeeledTail", "peel_tail"]


@dataclass(frozen=True, slots=True)
class PeeledTail:
    """What the runtime does in place of the graph's tail.

    Attributes:
        scores: the tensor to stop at, float [N, C, h, w].
        coordinates: of the upsampling that was peeled.
        factors: (height, width), labels from one score to the next; None where the labels have
            the image's size.
        threshold: of a single class's score, above which a pixel is of the class.
        lead: (height, width), with factors, as of `Upsampled`.
        surplus: (height, width), with factors, labels that there are more than factor times the
            scores, before the image's size is cut out; less than 0 where there are fewer.
    """

    scores: str
    coordinates: Coordinates
    factors: tuple[int, int] | None
    threshold: float
    lead: tuple[float, float] = (0.0, 0.0)
    surplus: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, scores: str, finish: Finish) -> PeeledTail:
        """Give what a manifest says."""
        return cls(
            scores,
            finish.coordinates,
            finish.factors,
            finish.threshold,
            finish.lead,
            finish.surplus,
        )

    @property
    def finish(self) -> Finish:
        """What a manifest says of it, beside where to stop."""
        return Finish(self.coordinates, self.factors, self.threshold, self.lead, self.surplus)

    def upsampled(
        self, samples: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled]:
        """Say what was peeled of scores [N, C, *samples], for an image of (height, width) px."""
        both = []
        for axis, count in enumerate(samples):
            corners = self.coordinates == "align_corners"
            if self.factors is None:
                outputs = size[axis]
                single = self.coordinates == "pytorch_half_pixel" and outputs == 1
                # a single pixel is the first sample
                both.append(Upsampled(1 if single else count, outputs, corners))
            else:
                factor = self.factors[axis]
                outputs = max(count * factor + self.surplus[axis], 0)
                fixed = None if corners else factor
                both.append(Upsampled(count, outputs, corners, fixed, self.lead[axis]))
        return both[0], both[1]


def peel_tail(graph: OnnxGraph, tail: Tail | None) -> PeeledTail | str:
    """Decide whether a tail may be left to the runtime.

    Args:
        tail: as `find_tail` gives it for the output of labels.

    Returns:
        How, or a phrase that says why not.
    """
    if tail is None or tail.labels is None:
        return "the graph does not end in class ids made of scores"
    resize = graph.producer(tail.crops[0].inputs[0] if tail.crops else tail.scores)
    if tail.low_scores is None or resize is None:
        return "nothing is upsampled before the labels"
    if (tail.class_axis, tail.low_class_axis) != (1, 1):
        return "the classes are not the second axis"
    if tail.coordinates not in (*get_args(Coordinates), "transposed"):
        return f"its upsampling has the coordinates {tail.coordinates}"
    image = _image(graph)
    if image is None:
        return "its input is no image"
    tracer = SizeTracer(graph, image)
    obstacle = _obstacle(tail, tracer.dims(tail.low_scores))
    if obstacle is not None:
        return obstacle
    size = _image_size(tracer, image)
    crop = Crop()
    if tail.crops:
        found = size and find_crop(graph, tail.crops, image_size=size, tracer=tracer)
        if not found:
            return "its upsampling is cropped to a size that is not known to be the image's"
        crop = found
    threshold = _score_threshold(tail)
    if tail.coordinates == "transposed":
        return _peel_transposed(graph, tail.low_scores, resize, crop, threshold)
    coordinates = cast(Coordinates, tail.coordinates)
    factors = _whole_factors(graph, resize)
    if factors is None and not (size and _gives_image_size(tracer, image, size, resize)):
        return "its upsampling is not known to give the image's size"
    if crop.lead != (0, 0) and (factors is None or coordinates == "align_corners"):
        return "its upsampling is cropped before the first pixel"
    above, left = crop.lead
    return PeeledTail(
        tail.low_scores, coordinates, factors, threshold, (above, left), (-above, -left)
    )


def _peel_transposed(
    graph: OnnxGraph, low_scores: str, node: Node, crop: Crop, threshold: float
) -> PeeledTail | str:
    """Peel a bilinear transposed convolution: at the border its scores fade, all alike."""
    found = find_bilinear_transposed(graph, node)
    if found is None:
        return "its transposed convolution is not bilinear"
    if threshold != 0:
        return "its scores fade at the border, below a threshold that is not 0"
    return PeeledTail(
        scores=low_scores,
        coordinates="half_pixel",
        factors=(found.factor, found.factor),
        threshold=threshold,
        lead=(found.lead[0] + crop.lead[0], found.lead[1] + crop.lead[1]),
        surplus=(found.surplus[0] - crop.lead[0], found.surplus[1] - crop.lead[1]),
    )


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
    _, _, scales_name, sizes_name = (*resize.inputs, "", "", "")[:4]
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


def _image_size(tracer: SizeTracer, image: GraphTensor) -> tuple[Size, Size] | None:
    dims = tracer.dims(image.name)
    if dims is None:
        return None
    first = 2 if dims[1] in (1, 3) else 1
    return dims[first], dims[first + 1]


def _gives_image_size(
    tracer: SizeTracer, image: GraphTensor, size: tuple[Size, Size], resize: Node
) -> bool:
    if len(resize.inputs) < 4 or not resize.inputs[3]:
        return False
    sizes = tracer.numbers(resize.inputs[3])
    dims, low_dims = tracer.dims(image.name), tracer.dims(resize.inputs[0])
    if sizes is None or sizes.ndim != 1 or dims is None or low_dims is None:
        return False
    found = _of_height_and_width(resize, sizes)
    if found is None or tuple(found) != size:
        return False
    if len(sizes) == 2:
        return True
    # a batch is never resized, by whichever tensor it is told; classes could be
    batch = isinstance(sizes[0], AxisOf) and sizes[0].axis == 0
    return (batch or sizes[0] in (dims[0], low_dims[0])) and sizes[1] == low_dims[1]
