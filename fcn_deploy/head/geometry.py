"""Compute the cells and weights of a bilinear resize, equal to PyTorch's to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fcn_deploy.names import Array

__all__ = ["LANES", "Axis", "Upsampled", "interpolate", "make_axis"]

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


@dataclass(frozen=True, slots=True)
class Upsampled:
    """One axis of a bilinear upsampling.

    Attributes:
        samples: that there are.
        size: outputs that there are.
        align_corners: as for `upsample_argmax`.
        factor: outputs from one sample to the next; None where these are `size` over `samples`.
        lead: with a factor, by how many outputs the first one lies behind where it would be if
            the outputs divided the samples' area: more than 0 where the upsampling is cropped,
            less where it goes on before the first sample, as it does behind the last.
    """

    samples: int
    size: int
    align_corners: bool = False
    factor: int | None = None
    lead: float = 0.0

    def axis(self) -> Axis:
        """Place the outputs; see `make_axis`."""
        return make_axis(
            self.samples,
            self.size,
            align_corners=self.align_corners,
            factor=self.factor,
            lead=self.lead,
        )


@lru_cache(maxsize=64)
def make_axis(
    samples: int,
    size: int,
    *,
    align_corners: bool,
    factor: int | None = None,
    lead: float = 0.0,
) -> Axis:
    """Place `size` outputs over `samples` samples; the arrays are read-only and kept for reuse.

    Outputs before the first sample and behind the last take that sample.
    """
    outputs = np.arange(size)
    # PyTorch: the scale in float32, then one fused multiply-add, which rounds once
    if align_corners:
        scale = np.float32(samples - 1) / np.float32(size - 1) if size > 1 else np.float32(0)
        source = (np.float64(scale) * outputs).astype(np.float32)
    else:
        per_output = (samples, size) if factor is None else (1, factor)
        scale = np.float32(per_output[0]) / np.float32(per_output[1])
        source = (np.float64(scale) * (outputs + (lead + 0.5)) - 0.5).astype(np.float32)
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


def interpolate(scores: Array, rows: Upsampled, columns: Upsampled) -> Array:
    """Give the scores at every output: float32 [C, rows.size, columns.size] of [C, h, w]."""
    found = scores.astype(np.float32)
    for axis, whole in ((1, rows), (2, columns)):
        placed = whole.axis()
        behind = np.minimum(placed.cells + 1, whole.samples - 1)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        near, far = (weights[: whole.size].reshape(shape) for weights in (placed.near, placed.far))
        found = found.take(placed.cells, axis) * near + found.take(behind, axis) * far
    return found
