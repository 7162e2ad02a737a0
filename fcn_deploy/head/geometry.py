"""Where the outputs of a bilinear resize lie between the samples: PyTorch's weights, to the bit."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fcn_deploy.tensors import Array

__all__ = ["LANES", "Axis", "make_axis"]

LANES = 8
"""Neighbouring outputs that are computed at once: the usual width of a cell."""


class Axis(NamedTuple):
    """One axis of a resize. Outputs between the same two samples form a run.

    Attributes:
        cells: intp [size], the sample before each output; behind it lies the next one, or the
            same one again at the end.
        near, far: float32 [size + LANES], weights of the sample before and the one behind. They
            sum to one; the last entries are there to be read by whole vectors only.
        starts: intp [runs + 1], the first output of each run, and the number of outputs.
    """

    cells: Array
    near: Array
    far: Array
    starts: Array


@lru_cache(maxsize=64)
def make_axis(samples: int, size: int, *, align_corners: bool) -> Axis:
    """Place `size` outputs over `samples` samples; the arrays are read-only and kept for reuse."""
    outputs = np.arange(size)
    # PyTorch: the scale in float32, then one fused multiply-add, which rounds once
    if align_corners:
        scale = np.float32(samples - 1) / np.float32(size - 1) if size > 1 else np.float32(0)
        source = (np.float64(scale) * outputs).astype(np.float32)
    else:
        scale = np.float32(samples) / np.float32(size)
        source = (np.float64(scale) * (outputs + 0.5) - 0.5).astype(np.float32)
    source = np.clip(source, 0, np.float32(samples - 1))
    cells = source.astype(np.intp)
    far = source - cells.astype(np.float32)
    starts = np.append(np.flatnonzero(np.diff(cells, prepend=-1)), size)
    padding = np.zeros(LANES, np.float32)
    axis = Axis(
        cells,
        np.concatenate([np.float32(1) - far, padding]),
        np.concatenate([far, padding]),
        starts.astype(np.intp),
    )
    for array in axis:
        array.flags.writeable = False
    return axis
