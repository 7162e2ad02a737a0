"""Find what a graph's outputs mean by following them back to what made them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from fcn_deploy.graph.meaning.axis_rules import AXIS_RULES
from fcn_deploy.graph.meaning.flow import Flow, unknown
from fcn_deploy.graph.meaning.found_meaning import Activation, FoundMeaning
from fcn_deploy.graph.meaning.value_rules import VALUE_RULES
from fcn_deploy.graph.scan import GraphTensor, OnnxGraph
from fcn_deploy.graph.sizes import SizeTracer

__all__ = ["find_meaning", "find_queries"]

_RULES = {**VALUE_RULES, **AXIS_RULES}
_MAX_DEPTH = 120
"""Operators in a row; real networks have two dozen behind their last convolution."""

_TOLERANCE = 0.01  # of the range of probabilities: epsilons, rounded constants
_DEFAULT_THRESHOLD = 0.5
_SILENT = frozenset(("Identity", "Cast", "Dropout", "Squeeze", "Unsqueeze", "Reshape", "Transpose"))
_QUERY_NAMES = (
    ("pred_logits", "pred_masks"),
    ("class_queries_logits", "masks_queries_logits"),
)


class _Tracer:
    """Follows tensors back, each once."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self._known: dict[str, Flow] = {}
        self._depth = 0

    def flow(self, name: str) -> Flow:
        """Give what a tensor holds."""
        if name not in self._known:
            self._depth += 1
            self._known[name] = self._find(name)
            self._depth -= 1
        return self._known[name]

    def sizes(self, name: str) -> tuple[int | None, ...] | None:
        """Give the numbers in a tensor of sizes, None where only the run decides."""
        numbers = SizeTracer(self.graph, self.graph.inputs[0]).numbers(name)
        if numbers is None or numbers.ndim != 1:
            return None
        return tuple(size if isinstance(size, int) and size > 0 else None for size in numbers)

    def _find(self, name: str) -> Flow:
        node = self.graph.producer(name)
        if node is None:
            return self._with_rank(unknown("an input" if name else "nothing"), name)
        if self._depth > _MAX_DEPTH:
            return unknown(f"more than {_MAX_DEPTH} operators in a row")
        rule = _RULES.get(node.op_type) if not node.domain else None
        second = name != node.outputs[0] and node.op_type not in ("Split", "TopK")
        if rule is None or second or not all(node.inputs[:1]):
            which = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return self._with_rank(unknown(f"the operator {which}"), name)
        try:
            found = rule(self, node, name)
        except (IndexError, ValueError, ZeroDivisionError):  # somebody's file may say anything
            found = unknown(f"the operator {node.op_type}, whose inputs do not fit together")
        if found.kind != "unknown" and node.op_type not in _SILENT:
            inner = [self._known[one] for one in node.inputs[:1] if one in self._known]
            if inner and inner[0].found == found.found and inner[0].kind == found.kind:
                found = replace(found, through=(*inner[0].through, node.op_type))
        return self._with_rank(found, name)

    def _with_rank(self, flow: Flow, name: str) -> Flow:
        known = self.graph.tensor(name)
        if flow.rank is not None or known is None or known.dims is None:
            return flow
        return replace(flow, rank=len(known.dims))


def find_meaning(graph: OnnxGraph, *, output: str | None = None) -> FoundMeaning:
    """Follow an output back to what made it.

    Args:
        output: which; None means the first.

    Returns:
        What was found. Activation ``"unknown"``, with the reason as evidence, where an operator
        is not one that keeps the meaning of scores; never a guess.
    """
    name = graph.outputs[0].name if output is None else output
    flow = _Tracer(graph).flow(name)
    described = graph.tensor(name)
    dims = None if described is None else described.dims
    rank = flow.rank if dims is None else len(dims)
    activation, evidence = _activation(flow)
    whole = described is not None and (described.dtype or "").startswith(("int", "uint", "bool"))
    if whole and activation != "ids":
        untraced = flow.kind == "unknown" and flow.found.startswith("the operator")
        if untraced and not flow.quantised and _may_be_ids(dims):
            activation, evidence = "ids", f"whole numbers of {flow.found.removeprefix('the ')}"
        elif activation != "unknown":
            activation, evidence = (
                "unknown",
                f"{evidence}, as {described.dtype if described else ''}",
            )
    if activation == "ids":
        return _labels(name, flow, dims, rank, evidence)
    axis = None
    layout = None if flow.layout is None else flow.layout.replace("1", "")
    if layout in ("nchw", "nhwc"):
        axis = layout.index("c")
    elif layout is None and rank in (4, None):
        axis = _class_axis_by_sizes(graph, dims)
    elif layout != "nhw" and activation != "unknown":
        order = layout or f"{rank or 'unknown'} axes"
        activation, evidence = "unknown", f"{evidence}, whose axes are {order}, not [N, C, H, W]"
    written = _class_axis_by_sizes(graph, dims)
    if axis is not None and flow.classes is None and written not in (axis, None):
        activation = "unknown"  # only a Softmax's own axis spoke for it
        evidence += f" over axis {axis}, where the written sizes have the classes on axis {written}"
    size = dims[axis] if dims is not None and axis is not None and axis < len(dims) else None
    classes = size if isinstance(size, int) else flow.classes
    several = classes is not None and classes > 1
    if activation in ("softmax", "log_softmax") and classes == 1:
        activation, evidence = "unknown", f"{evidence} over a single class"
    single = activation in ("logits", "sigmoid") and not several
    return FoundMeaning(
        output=name,
        kind="scores",
        activation=activation,
        class_axis=axis,
        num_classes=classes,
        threshold=_DEFAULT_THRESHOLD if single else None,
        evidence=evidence,
        rank=rank,
        overshoots=flow.overshoots,
    )


def _activation(flow: Flow) -> tuple[Activation, str]:
    """Give the name of what was found, and the phrase."""
    evidence = flow.found
    if flow.through:
        evidence += f", then {', '.join(flow.through[:6])}{', ...' if flow.through[6:] else ''}"
    if flow.quantised and flow.kind != "unknown":
        return "unknown", f"{evidence}, as quantised integers"
    if flow.kind == "bounded":
        if max(abs(flow.low), abs(flow.high - 1)) > _TOLERANCE:
            if "Clip" in flow.found and abs(flow.low + flow.high) < _TOLERANCE:
                return "logits", evidence
            return "unknown", f"{evidence}, in {flow.low:g}..{flow.high:g}"
        if flow.total is None:
            return "sigmoid", evidence
        if abs(flow.total - 1) <= _TOLERANCE:
            return "softmax", evidence
        return "unknown", f"{evidence}, whose sum over the classes is not 1"
    if flow.kind == "logits" and flow.partial:
        return "unknown", f"one of several scores of {evidence}"
    if flow.kind in ("exp", "1+exp"):
        return "unknown", f"{evidence} of scores"
    return cast(Activation, flow.kind), evidence


def _may_be_ids(dims: tuple[int | str | None, ...] | None) -> bool:
    return dims is not None and (len(dims) == 3 or (len(dims) == 4 and 1 in (dims[1], dims[3])))


def _labels(
    name: str,
    flow: Flow,
    dims: tuple[int | str | None, ...] | None,
    rank: int | None,
    evidence: str,
) -> FoundMeaning:
    axis = None
    layout = None if flow.layout is None else flow.layout.replace("1", "")
    if layout in ("nchw", "nhwc"):
        axis = layout.index("c")
    elif layout is None and rank == 4 and dims is not None and 1 in (dims[1], dims[3]):
        axis = 1 if dims[1] == 1 else 3
    size = dims[axis] if dims is not None and axis is not None else 1
    known = layout in ("nhw", "nchw", "nhwc", None) and (rank == 3 or axis is not None)
    if not known or (isinstance(size, int) and size != 1):
        order = layout or f"{rank or 'unknown'} axes"
        return FoundMeaning(
            name, "scores", "unknown", None, flow.classes, None,
            f"{evidence}, whose axes are {order}, not [N, H, W] or [N, 1, H, W]", rank,
        )  # fmt: skip
    return FoundMeaning(name, "labels", "ids", axis, flow.classes, None, evidence, rank)


def _class_axis_by_sizes(graph: OnnxGraph, dims: tuple[int | str | None, ...] | None) -> int | None:
    """Tell classes from height and width by the sizes that the file writes down."""
    if dims is None or len(dims) != 4:
        return None
    fixed = [isinstance(dims[axis], int) for axis in (1, 2, 3)]
    if fixed == [True, False, False]:
        return 1
    if fixed == [False, False, True]:
        return 3
    image = graph.inputs[0].dims
    if fixed != [True, True, True] or image is None or len(image) != 4:
        return None
    last = image[3] in (1, 3, 4) and image[1] not in (1, 3, 4)
    height, width = (image[1], image[2]) if last else (image[2], image[3])
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    fits = [
        axis
        for axis, (rows, columns) in ((1, (dims[2], dims[3])), (3, (dims[1], dims[2])))
        if isinstance(rows, int) and isinstance(columns, int) and rows * width == columns * height
    ]
    return fits[0] if len(fits) == 1 else None


def find_queries(graph: OnnxGraph) -> FoundMeaning | None:
    """Recognise a query network: masks [N, Q, h, w], and of which class each is, [N, Q, C + 1].

    Returns:
        None where the outputs are not such a pair, by their usual names or by a number of queries
        that they share.
    """
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    pairs = [
        (outputs[classes], outputs[masks])
        for classes, masks in _QUERY_NAMES
        if classes in outputs and masks in outputs
    ]
    pairs += [(one, other) for one in graph.outputs for other in graph.outputs]
    for position, (classes, masks) in enumerate(pairs):
        named = (classes.name, masks.name) in _QUERY_NAMES and position < len(_QUERY_NAMES)
        if not (_shares_queries(classes, masks) or (named and not (classes.dims and masks.dims))):
            continue
        count = None if classes.dims is None else classes.dims[2]
        return FoundMeaning(
            output=masks.name,
            kind="queries",
            activation="unknown",
            class_axis=None,
            num_classes=count - 1 if isinstance(count, int) else None,
            threshold=None,
            evidence=f"masks '{masks.name}' of queries whose classes are in '{classes.name}'",
            rank=4,
            class_output=classes.name,
        )
    return None


def _shares_queries(classes: GraphTensor, masks: GraphTensor) -> bool:
    if classes.dims is None or masks.dims is None:
        return False
    if (len(classes.dims), len(masks.dims)) != (3, 4):
        return False
    named = (classes.name, masks.name) in _QUERY_NAMES
    fixed = isinstance(classes.dims[1], int) and isinstance(classes.dims[2], int)
    scores = (classes.dtype or "").startswith(("float", "bfloat"))  # labels are whole numbers
    return named or (scores and fixed and classes.dims[1] == masks.dims[1])
