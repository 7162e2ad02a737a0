"""Quantise weights to int8, one scale for each output channel, exact without VNNI too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.names import Array

__all__ = ["MAX_SCALE", "MIN_SCALE", "QuantizedWeight", "quantize_weight"]

MIN_SCALE = 2.0**-14
"""Smallest normal FP16 number, 6.1e-5. A layer with smaller scales computes in int8 as well, but
where TensorRT runs the rest in FP16, it reads and gives float32."""

MAX_SCALE = 65504.0
"""Largest FP16 number."""

_LEVELS = 127
_PAIR_LIMIT = 127.0
"""AVX2 adds products of unsigned bytes with two neighbouring weights in 16 bits, with saturation.
255 * 128 just fits, and rounding adds at most 1 to a pair. OpenVINO adds signed inputs so, too: it
shifts them by 128. With the limit, CPUs with and without VNNI give the same sums."""

_SHORT = 0.5
"""Of `MIN_SCALE`: a channel that needs no less takes it, and loses at most one of its seven bits.
Convolutions with many inputs begin with weights about so small (2048 channels of 3x3)."""

_NEGLIGIBLE = 0.01
"""Share of the layer's largest weight. A channel below it may lose small weights."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Weights of one convolution.

    Attributes:
        values: int8, of the shape of the weights.
        scales: float32 [C], one for each output channel.
        axis: of the output channels.
    """

    values: Array
    scales: Array
    axis: int

    def dequantized(self) -> Array:
        """Give what the convolution computes with, float32, of the shape of `values`."""
        wide: Array = self.values.astype(np.float32) * _spread(
            self.scales, self.values.ndim, self.axis
        )
        return wide


def quantize_weight(weight: Array, *, axis: int, groups: int = 1) -> QuantizedWeight | None:
    """Quantise the weights of a convolution, symmetrically.

    Args:
        weight: float [C_out, C_in / groups, ...] with axis 0, or [C_in, C_out / groups, ...] with
            axis 1, as Conv and ConvTranspose have them.
        axis: of the output channels.

    Returns:
        None where a scale would be above `MAX_SCALE`. None is below `MIN_SCALE` where that is near
        enough to all that a channel that counts needs.
    """
    wide = weight.astype(np.float64)
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(wide).max(axis=others)  # [C]
    needed = np.maximum(largest / _LEVELS, _largest_pairs(wide, axis, groups) / _PAIR_LIMIT)
    if needed.max() > MAX_SCALE:
        return None
    too_small = (needed < _SHORT * MIN_SCALE) & (largest > _NEGLIGIBLE * largest.max())
    least = min(MIN_SCALE, _NEGLIGIBLE * needed.max()) if too_small.any() else MIN_SCALE
    scales = np.maximum(needed, least).astype(np.float32)
    steps = np.rint(wide / _spread(scales.astype(np.float64), weight.ndim, axis))
    return QuantizedWeight(np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8), scales, axis)


def _largest_pairs(weight: Array, axis: int, groups: int) -> Array:
    """Give for each output channel the largest sum of two neighbours of one sign, [C]."""
    inputs = weight if axis == 0 else np.moveaxis(weight, 0, 1)  # [C_out.., C_in.., ...]
    count = inputs.shape[1] // (groups if axis == 1 else 1)
    # a ConvTranspose's input channels lie group behind group: pairs must not reach into the next
    split = inputs.reshape(inputs.shape[0], -1, count, *inputs.shape[2:])
    if count < 2:
        return np.zeros(inputs.shape[0])
    if count % 2:
        padding = [(0, 0)] * split.ndim
        padding[2] = (0, 1)
        split = np.pad(split, padding)
    sums = [
        np.maximum(sign * split[:, :, 0::2], 0) + np.maximum(sign * split[:, :, 1::2], 0)
        for sign in (1, -1)
    ]
    pairs: Array = np.maximum(*sums).reshape(inputs.shape[0], -1).max(axis=1)
    return pairs


def _spread(scales: Array, ndim: int, axis: int) -> Array:
    shape = [1] * ndim
    shape[axis] = -1
    return scales.reshape(shape)
