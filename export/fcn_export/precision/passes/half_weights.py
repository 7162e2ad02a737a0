"""Round weights to float16; count those that are clamped and those that become 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.names import Array

__all__ = ["MAX_HALF", "MIN_NORMAL_HALF", "HalfWeights", "half_weights"]

MAX_HALF = float(np.finfo(np.float16).max)  # 65504
MIN_NORMAL_HALF = float(np.finfo(np.float16).tiny)  # 6.104e-5; smaller ones lose digits


@dataclass(slots=True)
class HalfWeights:
    """Counts over the weights that became float16.

    Attributes:
        values: how many there were.
        clamped: finite, and beyond 65504: became it.
        clamped_tensors: names of the weights that have such values.
        subnormal: not 0, and below 6.1e-5: kept with fewer digits.
        flushed: not 0, and became 0.
    """

    values: int = 0
    clamped: int = 0
    clamped_tensors: tuple[str, ...] = ()
    subnormal: int = 0
    flushed: int = 0


def half_weights(values: Array, name: str, counts: HalfWeights) -> Array:
    """Give float32 weights as float16, rounded to the nearest, and add to the counts.

    Args:
        values: of any shape, which the result has, too.
        name: to count them by.
    """
    size = np.abs(values)
    beyond = np.isfinite(values) & (size > MAX_HALF)
    # a mask's infinity stays one
    half: Array = np.where(beyond, np.copysign(MAX_HALF, values), values).astype(np.float16)
    lost = (half == 0) & (values != 0)
    counts.values += values.size
    counts.clamped += int(beyond.sum())
    if beyond.any():
        counts.clamped_tensors = (*counts.clamped_tensors, name)
    counts.flushed += int(lost.sum())
    counts.subnormal += int(((size < MIN_NORMAL_HALF) & (half != 0)).sum())
    return half
