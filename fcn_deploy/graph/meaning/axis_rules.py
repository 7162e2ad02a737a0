"""Operators that move, cut, join or resample values, and those that pick the best class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fcn_deploy.graph.meaning.flow import (
    Flow,
    Trace,
    constant,
    integers,
    is_constant,
    layout_of,
    option,
    scalar,
    unknown,
)
from fcn_deploy.graph.meaning.value_rules import Rule
from fcn_deploy.graph.scan import Node

__all__ = ["AXIS_RULES"]

_NEAR = 1e-3


def _same(trace: Trace, node: Node, name: str) -> Flow:
    return trace.flow(node.inputs[0])


def _transpose(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    perm = integers(node.attributes.get("perm"))
    if perm is None and inner.rank is not None:
        perm = tuple(reversed(range(inner.rank)))
    if perm is None or inner.layout is None or sorted(perm) != [*range(len(inner.layout))]:
        return inner.scattered(len(perm) if perm else None)
    return inner.laid_out("".join(inner.layout[axis] for axis in perm))


def _squeeze(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    given = option(trace, node, 1, "axes")
    if inner.layout is None:
        rank = inner.rank - len(given) if given and inner.rank else None
        return inner.scattered(rank)
    if given is None:
        known = trace.graph.tensor(name)
        only_classes = _size_of_classes(inner) == 1 and (
            known is not None
            and known.dims is not None
            and len(known.dims) == len(inner.layout) - 1
        )
        given = (inner.layout.index("c"),) if only_classes and "c" in inner.layout else None
    axes = None if given is None else [inner.axis(one) for one in given]
    if axes is None or None in axes:
        return inner.scattered()
    return _without(inner, [axis for axis in axes if axis is not None])


def _size_of_classes(flow: Flow) -> int | None:
    return 1 if flow.kind == "ids" else flow.classes


def _without(flow: Flow, axes: Sequence[int]) -> Flow:
    """Drop axes of size one."""
    if flow.layout is None:
        return flow.scattered()
    dropped = {flow.layout[axis] for axis in axes}
    left = "".join(letter for i, letter in enumerate(flow.layout) if i not in axes)
    if "c" in dropped and flow.kind != "ids":
        flow = replace(flow, classes=1)
    return flow.laid_out(left)


def _unsqueeze(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    axes = option(trace, node, 1, "axes")
    if inner.layout is None or axes is None:
        return inner.scattered(inner.rank + len(axes) if inner.rank and axes else None)
    rank = len(inner.layout) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    # an axis where that of the classes was takes its place
    classes = min(places, default=-1) if inner.has_no_class_axis() and rank == 4 else -1
    letters = iter(inner.layout)
    made = [
        ("c" if i == classes else "1") if i in places else next(letters, "1") for i in range(rank)
    ]
    return inner.laid_out("".join(made))


def _reshape(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    known = trace.graph.tensor(name)
    sizes: tuple[int | None, ...] | None = None
    if node.op_type == "Reshape":
        sizes = trace.sizes(node.inputs[1])
    if sizes is None and known is not None and known.dims is not None:
        sizes = tuple(size if isinstance(size, int) else None for size in known.dims)
    if inner.total is not None and inner.classes is None:
        inner = replace(inner, total=math.nan)
    if sizes is None:
        return inner.scattered()
    rank, layout, count = len(sizes), inner.layout, _size_of_classes(inner)
    if layout is None:
        return inner.scattered(rank)
    first = sizes[1] if rank > 1 else None
    if rank == 3 and count == 1 and layout in ("nchw", "nhwc"):
        return inner.laid_out("nhw")
    if rank == 4 and layout == "nhw":
        return inner.laid_out("nchw" if first == 1 else "nhwc")
    if rank == len(layout) and rank <= 4 and 0 in (first, sizes[-1]):
        return inner.laid_out(layout)
    places = [1] if layout.startswith("nc") else [rank - 1] if layout.endswith("c") else []
    for place in places:
        moved = layout_of(rank, place)
        if count is not None and count > 1 and sizes[place] == count and moved is not None:
            return inner.laid_out(moved)
        if sizes[place] is None and rank == len(layout):
            return inner.laid_out(layout)
    if inner.total is not None:
        return unknown(f"a {node.op_type} of {inner.found} whose classes are not followed")
    return inner.scattered(rank)


def _channels(flow: Flow, count: int | None, how: str) -> Flow:
    """Keep `count` of the classes."""
    size = _size_of_classes(flow)
    if flow.kind == "unknown" or (count is not None and count == size):
        return flow
    if count is None or flow.kind == "ids":
        return unknown(f"a {how} of classes that are not known", flow)
    if flow.kind == "logits":
        return replace(flow, classes=count, partial=count == 1)
    if flow.kind == "bounded" and flow.total is None:
        return replace(flow, classes=count)
    total = flow.total or 0.0  # of a softmax from here on
    if flow.kind == "bounded" and (count, flow.classes) == (1, 2) and abs(total - 1) < _NEAR:
        found = f"one of the two classes of {flow.found}"
        return replace(flow, found=found, classes=1, total=None)
    classes = "its" if flow.classes is None else f"{flow.classes}"
    return unknown(f"{count} of {classes} classes of {flow.found}", flow)


def _slice(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    starts, ends = option(trace, node, 1, "starts"), option(trace, node, 2, "ends")
    axes = option(trace, node, 3, "axes")
    steps = option(trace, node, 4, "steps") if len(node.inputs) > 4 else None
    given = len(node.inputs) > 3 or "axes" in node.attributes
    if axes is None and not given and starts is not None:
        axes = tuple(range(len(starts)))
    if axes is None or inner.layout is None:
        return unknown("a Slice of axes that are not known", inner)
    found = inner
    for i, axis in enumerate(axes):
        if inner.letter(inner.axis(axis)) != "c":
            continue
        size = _size_of_classes(inner)
        if starts is None or ends is None:
            return unknown("a Slice of classes that are not known", inner)
        if size is None and (starts[i], ends[i]) >= (0, 0) and ends[i] < 1 << 30:
            count: int | None = max(0, ends[i] - starts[i])
        else:
            step = steps[i] if steps else 1
            count = None if size is None else len(range(size)[starts[i] : ends[i] : step or 1])
        found = _channels(found, count, "Slice")
    return found


def _gather(trace: Trace, node: Node, name: str) -> Flow:
    if is_constant(trace.graph, node.inputs[0]):
        return _looked_up(trace, node)
    inner = trace.flow(node.inputs[0])
    index = constant(trace.graph, node.inputs[1])
    axis = inner.axis(node.attributes.get("axis", 0))
    if index is None or index.ndim > 1 or axis is None or inner.layout is None:
        return unknown("a Gather", inner)
    found = inner
    if inner.layout[axis] == "c":
        found = _channels(inner, index.size, "Gather")
    return found if index.ndim else _without(found, [axis])


def _looked_up(trace: Trace, node: Node) -> Flow:
    """Ids may be turned into other ids by a table."""
    inner = trace.flow(node.inputs[1])
    table = constant(trace.graph, node.inputs[0])
    if inner.kind != "ids" or table is None or table.ndim != 1 or table.dtype.kind not in "iu":
        return unknown("a Gather from a table", inner)
    return replace(inner, found=f"{inner.found} and a table", classes=int(table.max()) + 1)


def _split(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    axis = inner.axis(node.attributes.get("axis", 0))
    if axis is None or inner.layout is None:
        return unknown("a Split", inner)
    if inner.layout[axis] != "c":
        return inner
    sizes, index = option(trace, node, 1, "split"), node.outputs.index(name)
    if sizes is not None and index < len(sizes):
        return _channels(inner, sizes[index], "Split")
    size, parts = _size_of_classes(inner), len(node.outputs)
    return _channels(inner, size // parts if size and size % parts == 0 else None, "Split")


def _concat(trace: Trace, node: Node, name: str) -> Flow:
    if any(is_constant(trace.graph, one) for one in node.inputs):
        return unknown("a Concat with constants")
    flows = [trace.flow(one) for one in node.inputs]
    first = flows[0]
    axis = first.axis(node.attributes.get("axis", 0))
    if axis is None or first.layout is None:
        return unknown("a Concat", first)
    alike = all(
        (one.kind, one.layout, one.low, one.high, one.total is None)
        == (first.kind, first.layout, first.low, first.high, first.total is None)
        for one in flows
    )
    if not alike:
        return unknown(
            "a Concat of " + " and ".join(dict.fromkeys(one.found for one in flows)), first
        )
    if first.layout[axis] != "c":
        return first
    counts = [one.classes for one in flows]
    classes = None if None in counts else sum(count for count in counts if count is not None)
    if first.kind in ("ids", "log_softmax") or first.total is not None:
        return unknown(f"a Concat of classes of {first.found}", first)
    found = f"Concat of {' and '.join(dict.fromkeys(one.found for one in flows))}"
    return replace(first, found=found, classes=classes, partial=False)


def _average(trace: Trace, node: Node, name: str) -> Flow:
    """ReduceMean and ReduceSum, over members of an ensemble or over pixels."""
    inner = trace.flow(node.inputs[0])
    given = option(trace, node, 1, "axes")
    axes = [inner.axis(axis) for axis in given or ()]
    letters = {inner.letter(axis) for axis in axes}
    if inner.kind not in ("logits", "bounded") or not axes or letters & {None, "c"}:
        return unknown(f"a {node.op_type}", inner)
    found = replace(inner, found=f"{node.op_type} of {inner.found}")
    if node.attributes.get("keepdims", 1):
        return found
    return _without(found, [axis for axis in axes if axis is not None])


def _pool(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    mixes = inner.total is not None and node.op_type == "MaxPool"
    if inner.kind == "ids" or mixes or name != node.outputs[0]:
        return unknown(f"a {node.op_type} of {inner.found}", inner)
    return inner


def _pad(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    pads = option(trace, node, 1, "pads")
    if inner.layout is None:
        return unknown("a Pad of axes that are not known", inner)
    axes = option(trace, node, 3, "axes") if len(node.inputs) > 3 else None
    axes = axes or tuple(range(len(inner.layout)))
    padded = range(len(axes)) if pads is None else [i for i, n in enumerate(pads) if n]
    if pads is not None and any(
        inner.letter(inner.axis(axes[i % len(axes)])) == "c" for i in padded
    ):
        return unknown("a Pad of classes", inner)
    return inner


def _resize(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    mode = str(node.attributes.get("mode", "nearest"))
    if node.op_type == "GridSample":
        mode = str(node.attributes.get("mode", "linear"))
    if inner.kind == "ids" and mode != "nearest":
        return unknown(f"class ids that are enlarged by {mode} interpolation", inner)
    found = replace(inner, overshoots=inner.overshoots or "cubic" in mode)
    scales = None
    if node.op_type == "Upsample" and len(node.inputs) < 2:
        given = node.attributes.get("scales")
        scales = list(given) if isinstance(given, tuple) else None
    elif node.op_type in ("Resize", "Upsample") and node.inputs[-1]:
        value = constant(trace.graph, node.inputs[2 if len(node.inputs) > 2 else 1])
        scales = None if value is None else value.reshape(-1).tolist()
    if scales and len(scales) == 4 and inner.layout is None and scales[0] == 1:
        rigid = [axis for axis in (1, 3) if scales[axis] == 1]
        layout = layout_of(4, rigid[0]) if len(rigid) == 1 else None
        return found.scattered(4) if layout is None else found.laid_out(layout)
    return found


def _shuffle(trace: Trace, node: Node, name: str) -> Flow:
    """DepthToSpace: pixels out of channels."""
    inner = trace.flow(node.inputs[0])
    block = node.attributes.get("blocksize")
    if inner.total is not None or inner.kind not in ("logits", "bounded") or inner.layout != "nchw":
        return unknown(f"a {node.op_type} of {inner.found}", inner)
    whole = isinstance(block, int) and block > 0 and inner.classes is not None
    classes = (
        inner.classes // block**2 if whole and inner.classes and isinstance(block, int) else None
    )
    return replace(inner, classes=classes)


def _argmax(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    axis = inner.axis(node.attributes.get("axis", 0))
    return _picked(inner, axis, "ArgMax", keep=bool(node.attributes.get("keepdims", 1)))


def _topk(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    by_attribute = node.attributes.get("k")
    count = scalar(constant(trace.graph, node.inputs[1])) if len(node.inputs) > 1 else by_attribute
    axis = inner.axis(node.attributes.get("axis", -1))
    if node.outputs.index(name) != 1 or count != 1 or not node.attributes.get("largest", 1):
        return unknown("a TopK that gives more, or other, than the best class's id", inner)
    return _picked(inner, axis, "TopK", keep=True)


def _picked(inner: Flow, axis: int | None, how: str, *, keep: bool) -> Flow:
    """Make ids of scores."""
    if inner.kind == "ids":
        return unknown(f"an {how} of class ids", inner)
    layout = inner.layout
    if layout is None and axis in (1, 3):
        layout = layout_of(inner.rank or 4, axis)
    if axis is None or layout is None or layout[axis] != "c":
        return unknown(
            f"{how} over axis {axis}, which is not known to be that of the classes", inner
        )
    if inner.classes == 1:
        return unknown(f"{how} over a single class", inner)
    found = Flow("ids", how, layout, len(layout), inner.classes)
    return found if keep else _without(found, [axis])


AXIS_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("ReduceMean",), _average),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("Resize", "Upsample", "GridSample"), _resize),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    "DepthToSpace": _shuffle,
    "ArgMax": _argmax,
    "TopK": _topk,
}
