"""What each operator does to the axes of a tensor, and which ones read the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fcn_deploy.graph.receptive_field.spans import (
    Features,
    Span,
    UntraceableError,
    broadcast,
    resample,
)
from fcn_deploy.graph.receptive_field.step import Step
from fcn_deploy.graph.receptive_field.windows import convolve, convolve_transposed, pool, resize
from fcn_deploy.graph.scan import Node

__all__ = ["follow", "works_by_element"]


def follow(step: Step) -> tuple[Features, ...]:
    """Give the outputs of an operator, as far as they are followed: the first, mostly.

    Raises:
        UntraceableError: the operator is unknown, or does what is not understood.
    """
    node = step.node
    if node.op_type == "Split" and node.domain == "":
        return _split(step)
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        raise UntraceableError("is not known")
    return (rule(step),)


def works_by_element(node: Node) -> bool:
    """Say whether an operator computes with all its inputs' values, rather than sizes or places."""
    return _RULES.get(node.op_type) is _broadcast


def _same(step: Step) -> Features:
    return Features(step.first.dims, step.first.spans)


def _broadcast(step: Step) -> Features:
    return broadcast([one for one in step.inputs if one is not None])


def _reduce(step: Step) -> Features:
    rank = len(step.first.dims)
    axes = step.axes(rank)
    if axes is None:
        axes = () if step.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    return _reduced(step, axes, keep=bool(step.integer("keepdims", 1)))


def _reduce_one(step: Step) -> Features:
    axis = step.integer("axis", 0) % len(step.first.dims)
    return _reduced(step, (axis,), keep=bool(step.integer("keepdims", 1)))


def _pool_whole(step: Step) -> Features:
    return _reduced(step, tuple(range(2, len(step.first.dims))), keep=True)


def _reduced(step: Step, axes: Sequence[int], *, keep: bool) -> Features:
    step.note_whole(axes)
    pairs: list[tuple[int, Span | None]] = []
    for axis, pair in enumerate(zip(step.first.dims, step.first.spans, strict=True)):
        if axis not in axes:
            pairs.append(pair)
        elif keep:
            pairs.append((1, None))
    return _of(pairs)


def _of(pairs: Sequence[tuple[int, Span | None]]) -> Features:
    return Features(tuple(size for size, _ in pairs), tuple(span for _, span in pairs))


def _softmax(step: Step) -> Features:
    rank = len(step.first.dims)
    axis = step.integer("axis", -1 if step.opset >= 13 else 1) % rank
    step.note_whole((axis,) if step.opset >= 13 else range(axis, rank))
    return _same(step)


def _normalize(step: Step) -> Features:
    step.note_whole(range(2, len(step.first.dims)))
    return _same(step)


def _normalize_batch(step: Step) -> Features:
    if step.integer("training_mode", 0):  # by the image's own mean, not the stored one
        step.note_whole(range(2, len(step.first.dims)))
    return _same(step)


def _normalize_layer(step: Step) -> Features:
    rank = len(step.first.dims)
    step.note_whole(range(step.integer("axis", -1) % rank, rank))
    return _same(step)


def _concat(step: Step) -> Features:
    parts = [one for one in step.inputs if one is not None]
    axis = step.integer("axis", 0) % len(step.first.dims)
    if any(part.spans[axis] is not None for part in parts):
        raise UntraceableError("joins images side by side")
    flat = [
        Features((*p.dims[:axis], 1, *p.dims[axis + 1 :]), p.spans, None)
        for p in parts
    ]  # fmt: skip
    joined = broadcast(flat)
    dims = list(joined.dims)
    dims[axis] = sum(part.dims[axis] for part in parts)
    return Features(tuple(dims), joined.spans)


def _split(step: Step) -> tuple[Features, ...]:
    source = step.first
    axis = step.integer("axis", 0) % len(source.dims)
    if source.spans[axis] is not None:
        raise UntraceableError("cuts the image apart")
    value = step.value(1)
    count = len(step.node.outputs)
    sizes = [int(v) for v in value] if value is not None else list(step.integers("split", ()))
    if not sizes:
        each = -(-source.dims[axis] // count)
        sizes = [min(each, source.dims[axis] - each * i) for i in range(count)]
    return tuple(
        Features((*source.dims[:axis], size, *source.dims[axis + 1 :]), source.spans)
        for size in sizes
    )


def _slice(step: Step) -> Features:
    source = step.first
    starts, ends, axes, steps = _slice_bounds(step)
    pairs = list(zip(source.dims, source.spans, strict=True))
    for start, end, named, stride in zip(starts, ends, axes, steps, strict=True):
        axis = named % len(pairs)
        size, span = pairs[axis]
        if stride < 1:
            raise UntraceableError("turns an axis round")
        first, last, _ = slice(start, end).indices(size)
        pairs[axis] = max(0, -(-(last - first) // stride)), _from(span, first, stride)
    return _of(pairs)


def _from(span: Span | None, first: int, stride: int) -> Span | None:
    return resample(span, down=stride, reads=lambda _: (first, first))


def _slice_bounds(step: Step) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]:
    if len(step.inputs) == 1:  # before opset 10
        starts, ends = step.integers("starts", ()), step.integers("ends", ())
        axes = step.integers("axes", range(len(starts)))
        return starts, ends, axes, (1,) * len(starts)
    values = [step.value(index) for index in range(1, 5)]
    known = [None if one is None else [int(v) for v in one.reshape(-1)] for one in values]
    first, last = known[0] or [], known[1] or []
    return first, last, known[2] or range(len(first)), known[3] or (1,) * len(first)


def _gather(step: Step) -> Features:
    source, indices = step.first, step.given(1)
    axis = step.integer("axis", 0) % len(source.dims)
    if indices is None or indices.is_spatial or source.spans[axis] is not None:
        raise UntraceableError("picks rows or columns")
    return Features(
        (*source.dims[:axis], *indices.dims, *source.dims[axis + 1 :]),
        (*source.spans[:axis], *indices.spans, *source.spans[axis + 1 :]),
    )


def _transpose(step: Step) -> Features:
    rank = len(step.first.dims)
    order = step.integers("perm", range(rank)[::-1])
    return _of([(step.first.dims[axis], step.first.spans[axis]) for axis in order])


def _squeeze(step: Step) -> Features:
    source = step.first
    axes = step.axes(len(source.dims))
    if axes is None:
        axes = tuple(i for i, size in enumerate(source.dims) if size == 1)
    if any(source.spans[axis] is not None for axis in axes):
        raise UntraceableError("drops an axis of the image")
    pairs = zip(source.dims, source.spans, strict=True)
    return _of([pair for axis, pair in enumerate(pairs) if axis not in axes])


def _unsqueeze(step: Step) -> Features:
    source, value = step.first, step.value(1)
    named = step.integers("axes", ()) if value is None else [int(v) for v in value.reshape(-1)]
    pairs = list(zip(source.dims, source.spans, strict=True))
    for axis in sorted(axis % (len(pairs) + len(named)) for axis in named):
        pairs.insert(axis, (1, None))
    return _of(pairs)


def _reshape(step: Step) -> Features:
    source, target = step.first, step.value(1)
    if target is None:
        raise UntraceableError("takes a shape that is not understood")
    dims = [int(size) for size in target.reshape(-1)]
    if not step.integer("allowzero", 0):
        dims = [source.dims[i] if size == 0 else size for i, size in enumerate(dims)]
    if -1 in dims:
        rest = math.prod(size for size in dims if size != -1)
        dims[dims.index(-1)] = math.prod(source.dims) // max(rest, 1)
    if not source.is_spatial:
        return Features.constant(dims)
    first = next(axis for axis, span in enumerate(source.spans) if span is not None)
    kept = len(source.dims) - first
    if tuple(dims[-kept:]) != source.dims[first:]:
        raise UntraceableError("mixes rows or columns with other axes")
    return Features(tuple(dims), (None,) * (len(dims) - kept) + source.spans[first:])


def _flatten(step: Step) -> Features:
    if step.first.is_spatial:
        raise UntraceableError("mixes rows or columns with other axes")
    axis = step.integer("axis", 1)
    dims = step.first.dims
    return Features.constant((math.prod(dims[:axis]), math.prod(dims[axis:])))


def _multiply(step: Step) -> Features:
    source, weights = step.first, step.given(1)
    if weights is not None and step.node.op_type == "MatMul":
        gathered = _gathered(step, source, weights)
        if gathered is not None:
            return gathered
    inner = step.integer("transA", 0) == 0 and source.spans[-1] is None
    if weights is None or weights.is_spatial or len(weights.dims) != 2 or not inner:
        raise UntraceableError("multiplies matrices over the image")
    columns = weights.dims[0 if step.integer("transB", 0) else 1]
    return Features((*source.dims[:-1], columns), source.spans)


def _gathered(step: Step, left: Features, right: Features) -> Features | None:
    """Follow sums over all rows or all columns, by a matrix that is made to fit them."""
    if left.is_spatial == right.is_spatial or left.dims[-1:] != right.dims[-2:-1]:
        return None
    if len(left.dims) == 2 and right.spans[-2] is not None:
        step.note("reads the whole image")
        dims = (*right.dims[:-2], left.dims[0], right.dims[-1])
        return Features(dims, (*right.spans[:-2], None, right.spans[-1]))
    if len(right.dims) == 2 and left.spans[-1] is not None:
        step.note("reads the whole image")
        return Features((*left.dims[:-1], right.dims[1]), (*left.spans[:-1], None))
    return None


def _count(step: Step) -> Features:
    """Follow numbers of places: a part of an image counts anew."""
    values = [step.value(index) for index in range(3)]
    start, limit, delta = (0 if one is None else float(one.reshape(-1)[0]) for one in values)
    step.note("counts places of the image")
    return Features.constant((max(0, math.ceil((limit - start) / delta)),))


def _expand(step: Step) -> Features:
    shape = step.value(1)
    sizes = () if shape is None else tuple(int(size) for size in shape.reshape(-1))
    return broadcast([step.first, Features.constant(sizes)])


def _fill(step: Step) -> Features:
    shape = step.value(0)
    return Features.constant(() if shape is None else [int(size) for size in shape.reshape(-1)])


def _pad(step: Step) -> Features:
    source, value = step.first, step.value(1)
    rank = len(source.dims)
    pads = step.integers("pads", ()) if value is None else [int(v) for v in value.reshape(-1)]
    axes = step.axes(rank, index=3) or tuple(range(rank))
    if step.text("mode", "constant") == "wrap":
        step.note("wraps the image round")
    pairs = list(zip(source.dims, source.spans, strict=True))
    for i, axis in enumerate(axes):
        before, behind = pads[i], pads[len(axes) + i]
        size, span = pairs[axis]
        pairs[axis] = size + before + behind, _from(span, -before, 1)
    return _of(pairs)


def _depth_to_space(step: Step) -> Features:
    block, (batch, depth, *sizes) = step.integer("blocksize", 1), step.first.dims
    spans = [resample(span, up=block) for span in step.first.spans[2:]]
    return Features(
        (batch, depth // block**2, *(size * block for size in sizes)), (None, None, *spans)
    )


def _space_to_depth(step: Step) -> Features:
    block, (batch, depth, *sizes) = step.integer("blocksize", 1), step.first.dims
    spans = [
        resample(span, down=block, reads=lambda _: (0, block - 1)) for span in step.first.spans[2:]
    ]
    return Features(
        (batch, depth * block**2, *(size // block for size in sizes)), (None, None, *spans)
    )


def _table(
    *groups: tuple[Callable[[Step], Features], str],
) -> dict[str, Callable[[Step], Features]]:
    return {name: rule for rule, names in groups for name in names.split()}


_RULES = _table(
    (_same, "Identity Cast CastLike Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Clip Elu"),
    (_same, "Selu Celu Gelu Softplus Softsign Mish Swish Erf Exp Log Sqrt"),
    (_same, "ThresholdedRelu Reciprocal Abs Neg Sign Floor Ceil Round Not Sin Cos Dropout"),
    (_same, "LRN QuantizeLinear DequantizeLinear"),
    (_normalize_batch, "BatchNormalization"),
    (_broadcast, "Add Sub Mul Div Pow Mod Min Max Sum Mean Where PRelu And Or Xor"),
    (_broadcast, "Equal Greater GreaterOrEqual Less LessOrEqual"),
    (_reduce, "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2"),
    (_reduce, "ReduceSumSquare ReduceLogSum ReduceLogSumExp"),
    (_reduce_one, "ArgMax ArgMin"),
    (_pool_whole, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    (_softmax, "Softmax LogSoftmax Hardmax"),
    (_normalize, "InstanceNormalization GroupNormalization MeanVarianceNormalization"),
    (_normalize_layer, "LayerNormalization"),
    (convolve, "Conv"),
    (convolve_transposed, "ConvTranspose"),
    (pool, "MaxPool AveragePool LpPool"),
    (resize, "Resize Upsample"),
    (_concat, "Concat"),
    (_slice, "Slice"),
    (_gather, "Gather"),
    (_transpose, "Transpose"),
    (_squeeze, "Squeeze"),
    (_unsqueeze, "Unsqueeze"),
    (_reshape, "Reshape"),
    (_flatten, "Flatten"),
    (_multiply, "MatMul Gemm"),
    (_expand, "Expand"),
    (_count, "Range"),
    (_fill, "ConstantOfShape"),
    (_pad, "Pad"),
    (_depth_to_space, "DepthToSpace"),
    (_space_to_depth, "SpaceToDepth"),
)  # fmt: skip
