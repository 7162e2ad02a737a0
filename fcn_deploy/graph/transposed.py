"""Transposed convolutions whose fixed kernel is bilinear interpolation, as FCNs upsample by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.graph.scan import Node, OnnxGraph
from fcn_deploy.names import Array

__all__ = ["BilinearTransposed", "find_bilinear_transposed", "is_bilinear_kernel"]

_TOLERANCE = 2.0**-23
"""Of a weight: half a unit in the last place of float32's ones, twice."""


@dataclass(frozen=True, slots=True)
class BilinearTransposed:
    """A transposed convolution that interpolates every channel by itself.

    Outputs that lie beyond the outermost samples fade: those of all channels by one factor above
    zero, which changes neither the best of them nor the sign of any.

    Attributes:
        channels: that it has.
        factor: outputs from one sample to the next, along both axes.
        lead: (height, width), as of `fcn_deploy.head.geometry.Upsampled`.
        surplus: (height, width), outputs that there are more than factor times the samples; less
            than 0 where there are fewer.
    """

    channels: int
    factor: int
    lead: tuple[float, float]
    surplus: tuple[int, int]


def find_bilinear_transposed(graph: OnnxGraph, node: Node) -> BilinearTransposed | None:
    """Read a node; None where it is another operator, or interpolates in no such way."""
    if node.op_type != "ConvTranspose" or node.domain or len([*filter(None, node.inputs)]) != 2:
        return None  # a third input is a bias
    weights = graph.constant(node.inputs[1])
    if weights is None or not is_bilinear_kernel(weights):
        return None
    channels, _, size, _ = weights.shape
    attributes = node.attributes
    factor = (size + 1) // 2
    expected = {"strides": (factor, factor), "group": channels}
    usual = {"dilations": (1, 1), "auto_pad": "NOTSET", "strides": (1, 1), "group": 1}
    if (
        "output_shape" in attributes
        or any(attributes.get(key, usual[key]) != value for key, value in expected.items())
        or any(attributes.get(key, usual[key]) != usual[key] for key in ("dilations", "auto_pad"))
    ):
        return None
    pads = _numbers(attributes.get("pads", (0, 0, 0, 0)), 4)
    regrown = _numbers(attributes.get("output_padding", (0, 0)), 2)
    if pads is None or regrown is None:
        return None
    before, behind = pads[:2], pads[2:]
    if any(more > cut for more, cut in zip(regrown, behind, strict=True)):
        return None  # outputs that no sample reaches are zero in all channels
    shift = factor / 2 if size % 2 == 0 else (factor - 1) / 2
    extra = [
        size - factor - first - last + more
        for first, last, more in zip(before, behind, regrown, strict=True)
    ]
    return BilinearTransposed(
        channels, factor, (before[0] - shift, before[1] - shift), (extra[0], extra[1])
    )


def is_bilinear_kernel(weights: Array) -> bool:
    """Say whether float weights [channels, 1, k, k] interpolate each channel bilinearly.

    They do where they are the product of two triangles, which reach zero just outside the kernel.
    """
    if weights.ndim != 4 or weights.dtype.kind != "f":
        return False
    _, inside, height, width = weights.shape
    if inside != 1 or height != width or height < 3:
        return False
    factor = (height + 1) // 2
    taps = 1 - np.abs(np.arange(height) - (height - 1) / 2) / factor
    return bool((np.abs(weights - np.outer(taps, taps)) <= _TOLERANCE).all())


def _numbers(value: object, count: int) -> tuple[int, ...] | None:
    if not isinstance(value, tuple) or len(value) != count:
        return None
    numbers = tuple(one for one in value if isinstance(one, int) and one >= 0)
    return numbers if len(numbers) == count else None
