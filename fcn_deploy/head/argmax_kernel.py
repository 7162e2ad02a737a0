"""Compiled loops that find the winning class of each pixel between the samples of a score map.

A *cell* lies between four neighbouring samples; a row of cells gives a *band* of the output.
Bilinear weights are non-negative and sum to one, from which two rules follow that lose nothing:

- A cell whose corners share their best class has this class everywhere.
- In any other cell, take the mean of the corners' winners as if it were a class. The best class is
  never below it, so a class that is below it at all four corners wins nowhere in the cell.

The second rule leaves two classes, mostly; these are compared pixel by pixel, in vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from fcn_deploy.head.compiling import kernel, kernel_part
from fcn_deploy.head.geometry import LANES, Axis
from fcn_deploy.head.vectors import ROW_PAIR, contest, copy_line, lowest_bit
from fcn_deploy.names import Array

__all__ = ["argmax_kernel"]

_GROUP = 16
"""Output rows that are written at once: they share the work on a cell and stay in the L1 cache."""

_WORD = 32
"""Classes whose fate in a cell is kept in one word."""

_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)


@cache
def argmax_kernel(label_dtype: str) -> Callable[..., bool]:
    """Give `_argmax_bands` for labels of a dtype; takes seconds once, if it is not on disk."""
    labels = types.Array(getattr(types, label_dtype), 2, "C")
    return kernel(_argmax_bands, types.boolean, labels)


def _argmax_bands(
    scores: Array, threshold: float, rows: Axis, columns: Axis, first: int, last: int, labels: Array
) -> bool:
    """Write the labels of the bands `first` to `last`.

    Args:
        scores: float32 [C, h, w].
        threshold: what a single class competes with, as class 1 against 0.
        labels: [H, W]; only the rows of these bands are written.

    Returns:
        Whether the scores that these bands are responsible for are finite; else the labels are
        meaningless. All bands together are responsible for every score.
    """
    classes, height, width = scores.shape
    size = labels.shape[1]
    count = max(classes, 2)
    planes = np.empty((2, count, width + 1), np.float32)  # two rows of samples, one class a line
    winners = np.empty((2, width + 1), np.int32)
    best = np.empty(width + 1, np.float32)
    taint = np.zeros(width, np.float32)
    bars = np.empty((4, width), np.float32)
    contenders = np.empty(((count + _WORD - 1) // _WORD, width), np.uint32)
    corners = np.empty((count, 4), np.float32)
    ids = np.empty(count, np.int32)
    fill = np.empty(size + LANES, labels.dtype)
    group = np.empty((_GROUP, size + LANES), labels.dtype)
    identity = _is_identity(rows, height) and _is_identity(columns, width)

    top, loaded = 0, -1  # line of `planes` that holds the band's upper row; last row loaded
    unseen = 0 if first == 0 else rows.cells[rows.starts[first]]
    for band in range(first, last):
        start, stop = rows.starts[band], rows.starts[band + 1]
        row = rows.cells[start]
        while unseen < row:  # downscaling skips rows, but not their NaN
            _copy_row(scores, threshold, unseen, planes[1 - top], taint)
            unseen, loaded = unseen + 1, -1
        if loaded == row:
            top = 1 - top
        else:
            _copy_row(scores, threshold, row, planes[top], taint)
            _find_winners(planes[top], best, winners[top])
        unseen = row + 1
        if identity:
            _put_row(winners[top], labels, start)
            continue
        loaded = min(row + 1, height - 1)
        _copy_row(scores, threshold, loaded, planes[1 - top], taint)
        _find_winners(planes[1 - top], best, winners[1 - top])
        upper, lower = planes[top], planes[1 - top]
        mixed = _raise_bars(upper, lower, winners[top], winners[1 - top], bars)
        if mixed:
            _find_contenders(upper, lower, bars, contenders)
        _fill_row(winners[top], columns, fill)
        for y in range(start, stop, _GROUP):
            length = min(_GROUP, stop - y)
            if not mixed:
                for r in range(length):
                    _put_row(fill, labels, y + r)
                continue
            for r in range(length):
                _put_row(fill, group, r)
            for run in range(len(columns.starts) - 1):
                x, end = columns.starts[run], columns.starts[run + 1]
                cell = columns.cells[x]
                if bars[0, cell] == _INFINITY:
                    continue
                many = _gather(upper, lower, contenders, cell, corners, ids)
                for chunk in range(x, end, LANES):
                    for r in range(0, length, ROW_PAIR):
                        contest(
                            labels=group,
                            row=r,
                            x=chunk,
                            width=end - chunk,
                            near_x=columns.near,
                            far_x=columns.far,
                            near_y=rows.near,
                            far_y=rows.far,
                            y=y + r,
                            corners=corners,
                            ids=ids,
                            count=many,
                        )
            for r in range(length):
                _put_row(group[r], labels, y + r)
    beyond = height if last == len(rows.starts) - 1 else rows.cells[rows.starts[last]]
    for row in range(unseen, beyond):
        _copy_row(scores, threshold, row, planes[0], taint)
    finite = True
    for x in range(width):
        finite &= taint[x] == _ZERO
    return finite


@kernel_part
def _is_identity(axis: Axis, samples: int) -> bool:
    """Say whether each output is one sample, in order."""
    if len(axis.starts) != samples + 1 or axis.starts[samples] != samples:
        return False
    exact = True
    for x in range(samples):
        exact &= axis.far[x] == _ZERO
    return exact


@kernel_part
def _put_row(line: Array, target: Array, row: int) -> None:
    """Copy the first part of a line, as long as a row of the target, into that row."""
    for x in range(target.shape[1]):
        target[row, x] = line[x]


@kernel_part
def _copy_row(scores: Array, threshold: float, row: int, planes: Array, taint: Array) -> None:
    """Copy a row of samples, its last one twice; `taint` becomes NaN at NaN and infinity."""
    classes, _, width = scores.shape
    shift = len(planes) - classes
    for x in range(shift * len(planes[0])):
        planes[0, x] = threshold
    for c in range(classes):
        line = planes[c + shift]
        if scores.strides[2] == scores.itemsize:
            copy_line(line, scores, c, row)
        else:
            for x in range(width):
                line[x] = scores[c, row, x]
        line[width] = line[width - 1]
        for x in range(width):
            taint[x] += line[x] * _ZERO


@kernel_part
def _find_winners(planes: Array, best: Array, winners: Array) -> None:
    """Find each sample's best class, the lowest of equals."""
    for x in range(len(best)):
        best[x] = planes[0, x]
        winners[x] = 0
    for c in range(1, len(planes)):
        label = np.int32(c)
        for x in range(len(best)):
            better = planes[c, x] > best[x]
            best[x] = planes[c, x] if better else best[x]
            winners[x] = label if better else winners[x]


@kernel_part
def _raise_bars(upper: Array, lower: Array, above: Array, below: Array, bars: Array) -> int:
    """Set what a class must reach at one corner at least; give the number of mixed cells.

    The bar is the mean of the corners' winners, at the most the corner's own best score (the
    mean's rounding must not exclude a winner), and infinite where the corners agree.
    """
    mixed = 0
    share = np.float32(0.25)
    for x in range(bars.shape[1]):
        a, b, c, d = above[x], above[x + 1], below[x], below[x + 1]
        if a == b and a == c and a == d:
            for corner in range(4):
                bars[corner, x] = _INFINITY
            continue
        mixed += 1
        for corner in range(4):
            line = upper if corner < 2 else lower
            at = x + corner % 2
            mean = share * line[a, at] + share * line[b, at]
            mean += share * line[c, at] + share * line[d, at]
            own = (a, b, c, d)[corner]
            bars[corner, x] = min(mean, line[own, at])
    return mixed


@kernel_part
def _find_contenders(upper: Array, lower: Array, bars: Array, contenders: Array) -> None:
    """Set a bit for each class that reaches a bar at any corner of a cell."""
    for word in range(len(contenders)):
        for x in range(contenders.shape[1]):
            contenders[word, x] = 0
    for c in range(len(upper)):
        bit = np.uint32(1) << np.uint32(c % _WORD)
        word = c // _WORD
        for x in range(bars.shape[1]):
            reaches = (
                (upper[c, x] >= bars[0, x])
                | (upper[c, x + 1] >= bars[1, x])
                | (lower[c, x] >= bars[2, x])
                | (lower[c, x + 1] >= bars[3, x])
            )
            contenders[word, x] |= bit if reaches else np.uint32(0)


@kernel_part
def _fill_row(winners: Array, columns: Axis, fill: Array) -> None:
    """Write a row as if every cell had the best class of its upper left corner."""
    runs = len(columns.starts) - 1
    run = 0
    while run < runs:
        label = winners[columns.cells[columns.starts[run]]]
        after = run + 1
        while after < runs and winners[columns.cells[columns.starts[after]]] == label:
            after += 1
        for x in range(columns.starts[run], columns.starts[after]):
            fill[x] = label
        run = after


@kernel_part
def _gather(
    upper: Array, lower: Array, contenders: Array, cell: int, corners: Array, ids: Array
) -> int:
    """Collect a cell's contenders in ascending order; give their number."""
    many = 0
    for word in range(len(contenders)):
        bits = contenders[word, cell]
        while bits != 0:
            c = word * _WORD + lowest_bit(bits)
            bits &= bits - np.uint32(1)
            ids[many] = c
            corners[many, 0], corners[many, 1] = upper[c, cell], upper[c, cell + 1]
            corners[many, 2], corners[many, 3] = lower[c, cell], lower[c, cell + 1]
            many += 1
    return many
