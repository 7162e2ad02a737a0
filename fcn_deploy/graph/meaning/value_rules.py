"""Operators that change values: activations, arithmetic, comparisons, and what makes scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fcn_deploy.graph.meaning.flow import (
    Flow,
    Trace,
    constant,
    is_constant,
    layout_of,
    scalar,
    unknown,
    weight_dims,
)
from fcn_deploy.graph.scan import Node
from fcn_deploy.graph.transposed import find_bilinear_transposed

__all__ = ["VALUE_RULES", "Rule"]

Rule = Callable[[Trace, Node, str], Flow]
"""From the trace, a node and the name of one of its outputs to what that output holds."""

_NEAR = 1e-3
_SAFE_LOGIT = 4.0  # scores cut there, or farther out, still say the same: sigmoid(4) is 0.98
_SOFTMAX_BY_AXIS_OPSET = 13  # before, Softmax took all axes from its own on as one
_FLOAT_TYPES = frozenset((1, 10, 11, 16))  # TensorProto: float, float16, double, bfloat16
_BOOL = 9


def _weights(trace: Trace, node: Node, name: str) -> Flow:
    """Convolutions: logits, unless a fixed kernel averages each channel by itself."""
    if _averages(trace, node):
        return replace(trace.flow(node.inputs[0]), overshoots=False)
    quantised = node.op_type == "QLinearConv"
    dims = weight_dims(trace.graph, node.inputs[3 if quantised else 1])
    if dims is None:
        return Flow("logits", node.op_type)
    group = node.attributes.get("group", 1)
    transposed = node.op_type == "ConvTranspose"
    classes = dims[1] * group if transposed and isinstance(group, int) else dims[0]
    layout = layout_of(len(dims), 1)
    return Flow("logits", node.op_type, layout, len(dims), classes, quantised=quantised)


def _averages(trace: Trace, node: Node) -> bool:
    if node.op_type == "ConvTranspose":
        return find_bilinear_transposed(trace.graph, node) is not None
    if node.op_type != "Conv" or len([*filter(None, node.inputs)]) != 2:
        return False
    kernel = trace.graph.constant(node.inputs[1])
    if kernel is None or kernel.ndim != 4 or kernel.dtype.kind != "f" or kernel[0, 0].size < 2:
        return False
    each = kernel.shape[1] == 1 and node.attributes.get("group", 1) == len(kernel)
    sums = kernel.sum(axis=(1, 2, 3))
    return each and bool((kernel >= 0).all() and (abs(sums - 1) < _NEAR).all())


def _normalised(trace: Trace, node: Node, name: str) -> Flow:
    dims = weight_dims(trace.graph, node.inputs[1])
    inner = trace.flow(node.inputs[0])
    classes = dims[0] if dims and node.op_type != "GroupNormalization" else inner.classes
    rank = inner.rank or 4
    return Flow("logits", node.op_type, layout_of(rank, 1), rank, classes)


def _product(trace: Trace, node: Node, name: str) -> Flow:
    """MatMul, Gemm, Einsum: logits, unless all factors are probabilities."""
    factors = [one for one in node.inputs[:2] if not is_constant(trace.graph, one)]
    flows = [trace.flow(one) for one in factors]
    if len(flows) == 2 and all(flow.kind == "bounded" for flow in flows):
        return unknown(f"a {node.op_type} of probabilities, as of a query network's masks")
    found = Flow("logits", node.op_type)
    if node.op_type == "Einsum":
        equation = str(node.attributes.get("equation", ""))
        return replace(
            found, rank=len(equation.split("->")[1].strip()) if "->" in equation else None
        )
    dims = weight_dims(trace.graph, node.inputs[1])
    if dims is None or len(dims) != 2 or not flows:
        return found
    flipped = node.op_type == "Gemm" and node.attributes.get("transB", 0)
    rank = 2 if node.op_type == "Gemm" else flows[0].rank
    layout = None if rank is None else layout_of(rank, rank - 1)
    return replace(found, layout=layout, rank=rank, classes=dims[0 if flipped else 1])


def _sigmoid(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    centred = inner.total is None and abs(inner.low + inner.high) < _NEAR
    if inner.kind not in ("logits", "unknown") and not (inner.kind == "bounded" and centred):
        return unknown(f"a {node.op_type} of {_described(inner)}", inner)
    low = -1.0 if node.op_type == "Tanh" else 0.0
    return Flow("bounded", node.op_type, inner.layout, inner.rank, inner.classes, low=low)


def _softmax(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    by_axis = trace.graph.opset >= _SOFTMAX_BY_AXIS_OPSET
    axis = inner.axis(node.attributes.get("axis", -1 if by_axis else 1))
    rank = inner.rank or 4
    if axis is None or not (by_axis or axis == rank - 1):
        return unknown(f"a {node.op_type} over several axes, or one that is not known", inner)
    layout = inner.layout or layout_of(rank, axis)
    if layout is None or layout[axis] != "c":
        return unknown(
            f"a {node.op_type} over axis {axis}, which is not that of the classes", inner
        )
    if inner.classes == 1 or inner.kind == "ids":
        what = "a single class" if inner.classes == 1 else "class ids"
        return unknown(f"a {node.op_type} over {what}", inner)
    if node.op_type == "LogSoftmax":
        return Flow("log_softmax", node.op_type, layout, rank, inner.classes)
    return Flow("bounded", node.op_type, layout, rank, inner.classes, total=1.0)


def _exp(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    if inner.kind == "log_softmax":
        return replace(
            inner, kind="bounded", found=f"{inner.found} and Exp", low=0, high=1, total=1.0
        )
    if inner.kind == "logits":
        return replace(inner, kind="exp", found="Exp")
    return unknown("an Exp", inner)


def _log(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    if inner.kind == "bounded" and inner.total is not None and abs(inner.total - 1) < _NEAR:
        return replace(inner, kind="log_softmax", found=f"{inner.found} and Log", total=None)
    return unknown("a Log", inner)


def _neg(trace: Trace, node: Node, name: str) -> Flow:
    return _scaled(trace.flow(node.inputs[0]), -1.0)


def _reciprocal(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    if inner.kind == "1+exp":
        return replace(inner, kind="bounded", found="1 / (1 + Exp)", low=0.0, high=1.0)
    return unknown(f"a {node.op_type}", inner)


def _mul(trace: Trace, node: Node, name: str) -> Flow:
    first, second = node.inputs[:2]
    graph = trace.graph
    if node.op_type == "Div":
        if is_constant(graph, second):
            by = scalar(constant(graph, second))
            return _scaled(trace.flow(first), None if by is None else 1 / by if by else 0.0)
        if scalar(constant(graph, first)) == 1.0:
            return _reciprocal(trace, Node("Div", "", "", (second,), node.outputs, {}), name)
        return unknown("a Div of two tensors", trace.flow(first))
    if is_constant(graph, first):
        first, second = second, first
    if is_constant(graph, second):
        return _scaled(trace.flow(first), scalar(constant(graph, second)))
    return unknown("a Mul of two tensors", trace.flow(first))


def _sum(trace: Trace, node: Node, name: str) -> Flow:
    """Add, Sub, Sum and Mean, of tensors and constants."""
    terms: list[Flow] = []
    shift: float | None = 0.0
    for position, one in enumerate(node.inputs):
        sign = -1.0 if node.op_type == "Sub" and position else 1.0
        if is_constant(trace.graph, one):
            value = scalar(constant(trace.graph, one))
            shift = None if value is None or shift is None else shift + sign * value
        else:
            terms.append(_scaled(trace.flow(one), sign))
    if not terms:
        return unknown(f"a {node.op_type} of constants")
    joined = terms[0] if len(terms) == 1 else _joined(node.op_type, terms)
    found = _shifted(joined, shift)
    return _scaled(found, 1 / len(node.inputs)) if node.op_type == "Mean" else found


def _joined(op: str, terms: Sequence[Flow]) -> Flow:
    """Add up tensors of one meaning."""
    for term in terms:
        if term.kind == "unknown":
            return term
    layouts = {term.layout for term in terms if term.layout is not None}
    known = [term.classes for term in terms if term.classes is not None]
    distributions = {term.total is not None for term in terms}
    layout = next(iter(layouts)) if len(layouts) == 1 else None
    ranks = [term.rank for term in terms if term.rank is not None]
    base = replace(
        terms[0],
        layout=layout,
        rank=max(ranks, default=None) if layout is None else len(layout),
        classes=max(known, default=None),
        overshoots=any(term.overshoots for term in terms),
        through=(),
    )
    kinds = {"logits" if term.kind == "log_softmax" else term.kind for term in terms}
    if kinds == {"logits"}:
        partial = op != "Sub" and any(term.partial for term in terms)
        offset = sum(term.offset for term in terms)
        names = " and ".join(dict.fromkeys(term.found for term in terms))
        return replace(
            base, kind="logits", found=f"{op} of {names}", offset=offset, partial=partial
        )
    if kinds == {"bounded"} and len(distributions) == 1 and len(layouts) <= 1:
        total = sum(term.total or 0.0 for term in terms) if True in distributions else None
        low, high = sum(term.low for term in terms), sum(term.high for term in terms)
        names = " and ".join(dict.fromkeys(term.found for term in terms))
        return replace(base, found=f"{op} of {names}", low=low, high=high, total=total)
    return unknown(
        f"a{'n' if op == 'Add' else ''} {op} of {' and '.join(map(_described, terms))}", base
    )


def _scaled(flow: Flow, by: float | None) -> Flow:
    """Multiply by a constant; None where it differs from one element to the next."""
    if by == 1.0 or flow.kind == "unknown":
        return flow
    if flow.kind == "logits" and by != 0:
        return replace(flow, offset=flow.offset * (1.0 if by is None else by))
    if flow.kind == "log_softmax" and by is not None and by > 0:
        return replace(flow, kind="logits", found=f"{flow.found}, scaled")
    if flow.kind == "bounded" and by:
        low, high = sorted((flow.low * by, flow.high * by))
        total = None if flow.total is None else flow.total * by
        return replace(flow, low=low, high=high, total=total)
    factor = "constants that differ" if by is None else f"{by:g}"
    return unknown(f"{_described(flow)}, multiplied by {factor}", flow)


def _shifted(flow: Flow, by: float | None) -> Flow:
    """Add a constant; None where it differs from one element to the next."""
    if by == 0.0 or flow.kind == "unknown":
        return flow
    if flow.kind in ("logits", "log_softmax"):
        return replace(flow, kind="logits", offset=flow.offset + (by or 0.0))
    if flow.kind == "exp" and by is not None and abs(by - 1) < _NEAR:
        return replace(flow, kind="1+exp")
    if flow.kind == "bounded" and by is not None:
        total = flow.total
        if total is not None and flow.classes is not None:
            total += by * flow.classes
        elif total is not None and abs(by) > _NEAR:
            total = math.nan
        return replace(flow, low=flow.low + by, high=flow.high + by, total=total)
    more = "constants that differ" if by is None else f"{by:g}"
    return unknown(f"{_described(flow)}, with {more} added", flow)


def _clip(trace: Trace, node: Node, name: str) -> Flow:
    bounds: list[float | None] = []
    for index, attribute in ((1, "min"), (2, "max")):
        given = node.attributes.get(attribute)
        if len(node.inputs) > index and node.inputs[index]:
            value = scalar(constant(trace.graph, node.inputs[index]))
            if value is None:
                return unknown("a Clip to limits that are not constant", trace.flow(node.inputs[0]))
            bounds.append(value)
        else:
            bounds.append(float(given) if isinstance(given, int | float) else None)
    return _clipped(trace.flow(node.inputs[0]), node.op_type, *bounds)


def _clipped(flow: Flow, op: str, low: float | None, high: float | None) -> Flow:
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if (low, high) == (-math.inf, math.inf) or flow.kind == "unknown":
        return flow
    middle = (flow.low + flow.high) / 2 if flow.kind == "bounded" else flow.offset
    if flow.kind == "bounded" and low < middle < high:
        overshoots = flow.overshoots and (low < flow.low - _NEAR or high > flow.high + _NEAR)
        return replace(flow, overshoots=overshoots)
    if flow.kind == "logits" and min(middle - low, high - middle) >= _SAFE_LOGIT:
        return flow
    if flow.kind == "logits" and low < high and abs((low + high) / 2 - middle) < _NEAR:
        return replace(flow, kind="bounded", found=f"{op} of {flow.found}", low=low, high=high)
    if flow.kind == "ids" and low <= 0 and flow.classes is not None and high >= flow.classes - 1:
        return flow
    return unknown(f"{_described(flow)}, cut by {op} to {low:g}..{high:g}", flow)


def _extreme(trace: Trace, node: Node, name: str) -> Flow:
    """Max and Min, of a tensor and a limit or of several tensors."""
    limits = [one for one in node.inputs if is_constant(trace.graph, one)]
    flows = [trace.flow(one) for one in node.inputs if one not in limits]
    if not flows:
        return unknown(f"a {node.op_type} of constants")
    if not limits and all(
        (flow.kind, flow.layout, flow.low, flow.high, flow.total)
        == (flows[0].kind, flows[0].layout, flows[0].low, flows[0].high, None)
        and flow.kind in ("logits", "bounded")
        for flow in flows
    ):
        return flows[0]
    value = scalar(constant(trace.graph, limits[0])) if len(limits) == 1 else None
    if value is None or len(flows) != 1:
        return unknown(f"a {node.op_type} of several tensors", flows[0])
    low, high = (value, None) if node.op_type == "Max" else (None, value)
    return _clipped(flows[0], node.op_type, low, high)


def _round(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    if inner.kind == "bounded" and abs(inner.low) < _NEAR and abs(inner.high - 1) < _NEAR:
        return _mask(f"Round of {inner.found}", inner)
    return inner if inner.kind == "ids" else unknown("a Round", inner)


def _compare(trace: Trace, node: Node, name: str) -> Flow:
    graph = trace.graph
    sides = [one for one in node.inputs[:2] if not is_constant(graph, one)]
    if not sides:
        return unknown(f"a {node.op_type} of constants")
    return _mask(node.op_type, trace.flow(sides[0]))


def _mask(found: str, inner: Flow) -> Flow:
    """Give what is 0 or 1 at each pixel; of several classes it is no label."""
    several = inner.kind != "ids" and inner.classes != 1 and not inner.has_no_class_axis()
    if several and inner.classes is not None:
        return unknown(f"a mask ({found}) for each of {inner.classes} classes", inner)
    return Flow("ids", found, inner.layout, inner.rank, 2)


def _logic(trace: Trace, node: Node, name: str) -> Flow:
    flows = [trace.flow(one) for one in node.inputs]
    if any(flow.kind != "ids" or flow.classes != 2 for flow in flows):
        return unknown(f"a {node.op_type}", flows[0])
    return replace(flows[0], found=f"{node.op_type} of {flows[0].found}")


def _where(trace: Trace, node: Node, name: str) -> Flow:
    condition = trace.flow(node.inputs[0])
    chosen = [scalar(constant(trace.graph, one)) for one in node.inputs[1:3]]
    if condition.kind == "ids" and chosen in ([1.0, 0.0], [0.0, 1.0]):
        return replace(condition, found=f"Where of {condition.found}")
    return unknown("a Where", condition)


def _cast(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    to = node.attributes.get("to")
    if inner.kind == "ids" and to == _BOOL:
        return replace(inner, found=f"{inner.found}, as bool", classes=2)
    if inner.kind == "ids" or to in _FLOAT_TYPES or node.op_type == "CastLike":
        return inner
    source = trace.graph.tensor(node.inputs[0])
    if inner.kind == "unknown" and source is not None and _is_whole(source.dtype):
        return inner
    return unknown(f"a Cast of {_described(inner)} to whole numbers", inner)


def _is_whole(dtype: str | None) -> bool:
    return dtype is not None and dtype.startswith(("int", "uint", "bool"))


def _quantise(trace: Trace, node: Node, name: str) -> Flow:
    inner = trace.flow(node.inputs[0])
    return replace(inner, quantised=node.op_type == "QuantizeLinear")


def _described(flow: Flow) -> str:
    words = {"logits": "scores", "ids": "class ids", "log_softmax": "log-probabilities"}
    if flow.kind == "bounded":
        return f"{flow.found}, in {flow.low:g}..{flow.high:g}"
    return (
        flow.found
        if flow.kind == "unknown"
        else f"{words.get(flow.kind, flow.kind)} ({flow.found})"
    )


VALUE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "QLinearConv"), _weights),
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), _product),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "GroupNormalization"), _normalised
    ),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Tanh"), _sigmoid),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), _sum),
    **dict.fromkeys(("Mul", "Div"), _mul),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _compare),
    **dict.fromkeys(("Not", "And", "Or", "Xor"), _logic),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantise),
    "Exp": _exp,
    "Log": _log,
    "Neg": _neg,
    "Reciprocal": _reciprocal,
    "Clip": _clip,
    "Round": _round,
    "Where": _where,
}
