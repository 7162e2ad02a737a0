"""Write vector instructions that Numba does not find by itself, as LLVM code.

Numba's disk cache notices changes of a kernel's own file only: `make clean` after a change here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fcn_deploy.head.compiling import instruction
from fcn_deploy.head.geometry import LANES

__all__ = ["ROW_PAIR", "contest", "copy_line", "lowest_bit"]

ROW_PAIR = 2
"""Output rows that are compared at once, so that they fill a 512-bit register."""

_INT32 = ir.IntType(32)


@instruction
def lowest_bit(typing_context, word):  # type: ignore[no-untyped-def]  # these are Numba's types
    """Give the index of the lowest bit of a word that is not 0."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]  # as above
        index = builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(index, ir.IntType(64))

    return types.int64(word), generate


@instruction
def copy_line(typing_context, line, scores, c, row):  # type: ignore[no-untyped-def]  # as above
    """Copy scores[c, row], which must be contiguous; Numba would copy number by number."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]  # as above
        target, source = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        strides = [builder.extract_value(source.strides, axis) for axis in range(3)]
        offset = builder.add(builder.mul(values[2], strides[0]), builder.mul(values[3], strides[1]))
        start = cgutils.pointer_add(builder, source.data, offset)  # type: ignore[no-untyped-call]
        width = builder.extract_value(source.shape, 2)
        cgutils.raw_memcpy(builder, target.data, start, width, source.itemsize)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(line, scores, c, row), generate


@instruction
def contest(  # type: ignore[no-untyped-def]  # these are Numba's types
    typing_context, labels, row, x, width, near_x, far_x, near_y, far_y, y, corners, ids, count
):
    """Write the winners of `ROW_PAIR` rows of `LANES` pixels, `width` of which lie in the cell.

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
    scores_type = ir.VectorType(ir.FloatType(), ROW_PAIR * LANES)
    ids_type = ir.VectorType(_INT32, ROW_PAIR * LANES)
    columns = list(range(LANES)) * ROW_PAIR
    rows = [r for r in range(ROW_PAIR) for _ in range(LANES)]
    weights_x = [_load(builder, weights.data, x, LANES, columns) for weights in (near_x, far_x)]
    weights_y = [_load(builder, weights.data, y, ROW_PAIR, rows) for weights in (near_y, far_y)]

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
    for r in range(ROW_PAIR):
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
