"""Give the labels of a region of a frame from the scores around it, equal to the whole frame's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.errors import ShapeError
from fcn_deploy.head.geometry import LANES, Axis, Upsampled
from fcn_deploy.head.upsample import as_batch, label_dtype, label_into, thread_count
from fcn_deploy.names import Array

__all__ = ["AxisRegion", "upsample_argmax_region"]


@dataclass(frozen=True, slots=True)
class AxisRegion:
    """A region along one axis of a resize.

    Attributes:
        whole: the resize of the whole axis.
        begin, end: the labels of the region, as indices of the whole axis.
        first: index of the first sample that is given.
    """

    whole: Upsampled
    begin: int
    end: int
    first: int = 0

    @property
    def last(self) -> int:
        """Index of the last sample that is needed."""
        return min(int(self.whole.axis().cells[self.end - 1]) + 1, self.whole.samples - 1)

    def axis(self) -> Axis:
        """Give the region as an axis of its own, with the whole axis's weights."""
        whole = self.whole.axis()
        cells = whole.cells[self.begin : self.end] - self.first
        starts = np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(cells))
        behind = self.end + LANES
        region = Axis(
            cells,
            whole.near[self.begin : behind],
            whole.far[self.begin : behind],
            starts.astype(np.intp),
        )
        for array in region:
            array.flags.writeable = False
        return region


def upsample_argmax_region(
    scores: Array,
    rows: AxisRegion,
    columns: AxisRegion,
    *,
    threshold: float = 0.0,
    num_threads: int | None = None,
) -> Array:
    """Give the labels that `upsample_argmax` of the whole scores gives in a rectangle, to the bit.

    Args:
        scores: [N, C, h, w], the samples of the whole from `first` on along each axis; those
            behind the last that is needed are not read.
        rows, columns: the region, down and across.
        threshold, num_threads: as for `upsample_argmax`.

    Returns:
        Labels, uint8 (uint16 above 256 classes) [N, height, width] of the rectangle, owned by the
        caller.

    Raises:
        NonFiniteOutputError: a score that was read is NaN or infinite.
        ShapeError: the scores end before the last sample that is needed.
    """
    needed = rows.last - rows.first + 1, columns.last - columns.first + 1
    if scores.ndim != 4 or scores.shape[2] < needed[0] or scores.shape[3] < needed[1]:
        raise ShapeError(
            f"the part's scores have shape {list(scores.shape)}; expected [n, classes, h, w] "
            f"with at least {needed[0]}x{needed[1]} samples."
        )
    size = rows.end - rows.begin, columns.end - columns.begin
    if size == needed:  # the kernel takes equal sizes for a resize that leaves all as it is
        added = ((0, 0), (0, 0), (0, 0), (0, 1))
        scores = np.pad(scores[:, :, : needed[0], : needed[1]], added, mode="edge")
    else:
        scores = scores[:, :, : needed[0], : needed[1]]
    batch = as_batch(scores, size)
    labels = np.empty((len(batch), *size), label_dtype(batch.shape[1]))
    threads = thread_count(batch, size, num_threads)
    label_into(
        batch,
        threshold=threshold,
        rows=rows.axis(),
        columns=columns.axis(),
        labels=labels,
        threads=threads,
    )
    return labels
