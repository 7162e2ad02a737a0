"""Compiled loops of the head: which class wins between the samples of a score map.

A *cell* lies between four neighbouring samples; a row of cells gives a *band* of the output.
Bilinear weights are non-negative and sum to one, from which two rules follow that lose nothing:

- A cell whose corners share their best class has this class everywhere.
- In any other cell, take the mean of the corners' winners as if it were a class. The best class is
  never below it, so a class that is below it at all four corners wins nowhere in the cell.

The second rule leaves two classes, mostly; these are compared pixel by pixel, in vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fcn_deploy.head.compiling import instruction, kernel, part
from fcn_deploy.head.geometry import LANES, Axis
from fcn_deploy.tensors import Array

__all__ = ["argmax_kernel"]

_PAIR = 2
"""Output rows that are compared at once, so that they fill a 512-bit register."""

_GROUP = 16
"""Output rows that are written at once: they share the work on a cell and stay in the L1 cache."""

_WORD = 32
"""Classes whose fate in a cell is kept in one word."""

_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)

_INT32 = ir.IntType(32)


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
    identity = labels.shape[0] == height and size == width

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
                    for r in range(0, length, _PAIR):
                        _contest(
                            *(group, r, chunk, end - chunk, columns.near, columns.far),
                            *(rows.near, rows.far, y + r, corners, ids, many),
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


@part
def _put_row(line: Array, target: Array, row: int) -> None:
    """Copy the first part of a line, as long as a row of the target, into that row."""
    for x in range(target.shape[1]):
        target[row, x] = line[x]


@part
def _copy_row(scores: Array, threshold: float, row: int, planes: Array, taint: Array) -> None:
    """Copy a row of samples, its last one twice; `taint` becomes NaN at NaN and infinity."""
    classes, _, width = scores.shape
    shift = len(planes) - classes
    for x in range(shift * len(planes[0])):
        planes[0, x] = threshold
    for c in range(classes):
        for x in range(width):
            value = scores[c, row, x]
            planes[c + shift, x] = value
            taint[x] += value * _ZERO
        planes[c + shift, width] = planes[c + shift, width - 1]


@part
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


@part
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


@part
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


@part
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


@part
def _gather(
    upper: Array, lower: Array, contenders: Array, cell: int, corners: Array, ids: Array
) -> int:
    """Collect a cell's contenders in ascending order; give their number."""
    many = 0
    for word in range(len(contenders)):
        bits = contenders[word, cell]
        while bits != 0:
            c = word * _WORD + _lowest_bit(bits)
            bits &= bits - np.uint32(1)
            ids[many] = c
            corners[many, 0], corners[many, 1] = upper[c, cell], upper[c, cell + 1]
            corners[many, 2], corners[many, 3] = lower[c, cell], lower[c, cell + 1]
            many += 1
    return many


@instruction
def _lowest_bit(typing_context, word):  # type: ignore[no-untyped-def]  # these are Numba's types
    """Give the index of the lowest bit of a word that is not 0."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]  # as above
        index = builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(index, ir.IntType(64))

    return types.int64(word), generate


@instruction
def _contest(  # type: ignore[no-untyped-def]  # these are Numba's types
    typing_context, labels, row, x, width, near_x, far_x, near_y, far_y, y, corners, ids, count
):
    """Write the winners of `_PAIR` rows of `LANES` pixels, `width` of which lie in the cell.

    Numba leaves loops as short as a cell scalar, so this spells the vectors out. Classes come in
    ascending order and only a greater score wins: ties go to the lowest class.
    """
    arguments = (labels, row, x, width, near_x, far_x, near_y, far_y, y, corners, ids, count)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]  # as above
        opened = [
            context.make_array(kind)(context, builder, value)
            if isinstance(kind, types.Array)
            else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        _write_contest(builder, *opened)
        return context.get_dummy_value()

    return types.void(*arguments), generate


def _write_contest(  # type: ignore[no-untyped-def]  # values of LLVM's builder
    builder, labels, row, x, width, near_x, far_x, near_y, far_y, y, corners, ids, count
) -> None:
    scores_type = ir.VectorType(ir.FloatType(), _PAIR * LANES)
    ids_type = ir.VectorType(_INT32, _PAIR * LANES)
    columns = list(range(LANES)) * _PAIR
    rows = [r for r in range(_PAIR) for _ in range(LANES)]
    weights_x = [_load(builder, weights.data, x, LANES, columns) for weights in (near_x, far_x)]
    weights_y = [_load(builder, weights.data, y, _PAIR, rows) for weights in (near_y, far_y)]

    def mean(near: Any, far: Any, weights: Any) -> Any:
        return builder.fadd(builder.fmul(near, weights[0]), builder.fmul(far, weights[1]))

    def contender(k: Any) -> tuple[Any, Any]:
        first = builder.gep(corners.data, [builder.mul(k, k.type(4))])
        values = [builder.load(builder.gep(first, [k.type(j)])) for j in range(4)]
        a, b, c, d = (_splat(builder, value, scores_type) for value in values)
        value = mean(mean(a, c, weights_y), mean(b, d, weights_y), weights_x)
        return value, _splat(builder, builder.load(builder.gep(ids.data, [k])), ids_type)

    start = (count.type(1), *contender(count.type(0)))
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("contender", "winners"))
    builder.cbranch(builder.icmp_signed(">", count, start[0]), loop, after)

    builder.position_at_end(loop)
    k, best, winners = (builder.phi(value.type) for value in start)
    value, label = contender(k)
    better = builder.fcmp_ordered(">", value, best)
    following = (
        builder.add(k, k.type(1)),
        builder.select(better, value, best),
        builder.select(better, label, winners),
    )
    for phi, first, later in zip((k, best, winners), start, following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", following[0], count), loop, after)

    builder.position_at_end(after)
    final = builder.phi(ids_type)
    final.add_incoming(start[2], before)
    final.add_incoming(following[2], loop)
    _store(builder, final, labels, row, x, width)


def _store(builder: Any, winners: Any, labels: Any, row: Any, x: Any, width: Any) -> None:
    """Store the lanes that lie in the cell; beyond it the labels stay as they are."""
    lanes = ir.VectorType(width.type, LANES)
    inside = builder.icmp_signed(
        "<", ir.Constant(lanes, list(range(LANES))), _splat(builder, width, lanes)
    )
    label = labels.data.type.pointee
    length = builder.extract_value(labels.shape, 1)
    for r in range(_PAIR):
        line = builder.mul(builder.add(row, row.type(r)), length)
        place = builder.gep(labels.data, [builder.add(line, x)])
        place = builder.bitcast(place, ir.VectorType(label, LANES).as_pointer())
        part = _pick(builder, winners, range(r * LANES, (r + 1) * LANES))
        part = builder.trunc(part, place.type.pointee)
        old = builder.load(place, align=1)
        builder.store(builder.select(inside, part, old), place, align=1)


def _load(builder: Any, data: Any, index: Any, count: int, lanes: list[int]) -> Any:
    """Load `count` floats, and give them in the order of `lanes`."""
    kind = ir.VectorType(ir.FloatType(), count)
    place = builder.bitcast(builder.gep(data, [index]), kind.as_pointer())
    return _pick(builder, builder.load(place, align=4), lanes)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT32(0))
    return _pick(builder, single, [0] * kind.count)


def _pick(builder: Any, vector: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)
