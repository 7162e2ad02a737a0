"""Compiled loops that compute the probability of each pixel's best class."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from fcn_deploy.head.compiling import kernel, kernel_part
from fcn_deploy.head.geometry import Axis
from fcn_deploy.names import Array

__all__ = ["confidence_kernel"]

_ONE = np.float32(1)
_LOG2_E = np.float32(1.4426950408889634)
_LEAST_EXPONENT = np.float32(-126)
_EXP2 = tuple(
    np.float32(c) for c in (0.00186713008, 0.0090170303, 0.0557999131, 0.24016445, 0.693151312, 1.0)
)
"""Polynomial of 2**x on 0..1, highest power first; its relative error is below 1e-7."""


@cache
def confidence_kernel() -> Callable[..., None]:
    """Give `_confidence_rows`, compiled; takes seconds once, if it is not on disk."""
    return kernel(_confidence_rows, types.void, types.Array(types.float32, 2, "C"))


def _confidence_rows(
    scores: Array,
    threshold: float,
    rows: Axis,
    columns: Axis,
    first: int,
    last: int,
    confidence: Array,
) -> None:
    """Write the softmax probability of the best class for the output rows `first` to `last`.

    Args:
        scores: float32 [C, h, w], finite.
        threshold: the score of what a single class competes with.
        confidence: float32 [H, W]; only these rows are written.
    """
    classes, height, width = scores.shape
    size = confidence.shape[1]
    line = np.empty(width + 1, np.float32)
    values = np.empty((classes, size), np.float32)
    best = np.empty(size, np.float32)
    total = np.empty(size, np.float32)
    for y in range(first, last):
        upper = rows.cells[y]
        lower = min(upper + 1, height - 1)
        near, far = rows.near[y], rows.far[y]
        best[:] = threshold if classes == 1 else np.float32(-np.inf)
        for c in range(classes):
            for x in range(width):
                line[x] = scores[c, upper, x] * near + scores[c, lower, x] * far
            line[width] = line[width - 1]
            for x in range(size):
                cell = columns.cells[x]
                value = line[cell] * columns.near[x] + line[cell + 1] * columns.far[x]
                values[c, x] = value
                best[x] = max(best[x], value)
        for x in range(size):
            total[x] = _exp(threshold - best[x]) if classes == 1 else np.float32(0)
        for c in range(classes):
            for x in range(size):
                total[x] += _exp(values[c, x] - best[x])
        for x in range(size):
            confidence[y, x] = _ONE / total[x]


@kernel_part
def _exp(x: np.float32) -> np.float32:
    """Give e**x for x of 0 and less, in operations that LLVM can vectorize."""
    scaled = max(x * _LOG2_E, _LEAST_EXPONENT)
    whole: np.float32 = np.floor(scaled)
    rest = scaled - whole
    power = _EXP2[0]
    for coefficient in _EXP2[1:]:
        power = power * rest + coefficient
    bits = np.int32((np.int32(whole) + 127) << 23)
    scale: np.float32 = bits.view(np.float32)
    return power * scale
