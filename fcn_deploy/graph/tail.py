"""How a segmentation graph ends: where its class scores are, and what is done to them after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fcn_deploy.graph.scan import Node, OnnxGraph
from fcn_deploy.graph.transposed import find_bilinear_transposed

__all__ = ["Tail", "find_tail"]

_WIDE_FLOATS = frozenset((1, 11))  # TensorProto.DataType: float, double; others would round
_BOOL = 9
_FLOATS = frozenset(("float32", "float16", "float64", "bfloat16"))
_ACTIVATIONS: dict[str, Literal["softmax", "sigmoid"]] = {
    "Softmax": "softmax",
    "LogSoftmax": "softmax",
    "Sigmoid": "sigmoid",
}
_LABEL_PASSES = frozenset(("Cast", "Squeeze", "Identity"))
_THRESHOLDS: dict[str, Literal["lower", "higher"]] = {
    "Greater": "lower",
    "GreaterOrEqual": "higher",
}
_SOFTMAX_BY_AXIS_OPSET = 13  # before, Softmax took all axes from its own on as one


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a graph, as far as it is one of the usual ones.

        low_scores ─ Resize ─ scores ─ Softmax or Sigmoid ─ ArgMax or Greater ─ Cast ─ output

    In place of Resize there may be a transposed convolution that is bilinear; Slices may follow.

    Attributes:
        output: the graph's output from which this was found.
        scores: class scores at the output's size: what the activation, ArgMax or Greater takes,
            or the output itself.
        class_axis: of `scores`: 1 for NCHW, 3 for NHWC.
        low_scores: the scores that are enlarged bilinearly into `scores`; None where nothing is.
        low_class_axis: of `low_scores`; as `class_axis` unless axes are swapped between.
        coordinates: the Resize's coordinate transformation, such as ``"half_pixel"`` or
            ``"align_corners"``; ``"transposed"`` of a convolution; None where nothing is enlarged.
        activation: what is applied to `scores` at full size; None where nothing is.
        low_activation: is applied before `scores` are enlarged, where `activation` is None; None
            where nothing is.
        labels: how the output's class ids are made; None where the output is scores.
        threshold: that Greater compares with, after `activation`; None without it.
        tie: the class id that a pixel gets where two scores are equally good, or a score is the
            threshold.
        crops: the Slices between what enlarges and `scores`, in the order in which they run.
    """

    output: str
    scores: str
    class_axis: int
    low_scores: str | None
    low_class_axis: int
    coordinates: str | None
    activation: Literal["softmax", "sigmoid"] | None
    low_activation: Literal["softmax", "sigmoid"] | None
    labels: Literal["argmax", "threshold"] | None
    threshold: float | None
    tie: Literal["lower", "higher"]
    crops: tuple[Node, ...] = field(default=(), compare=False)

    @property
    def probabilities(self) -> bool:
        """Whether `scores` are activated already, before they are enlarged."""
        return self.low_activation is not None


@dataclass(slots=True)
class _Walk:
    """A place in the graph, seen from the end.

    Attributes:
        class_axis: of the tensor where the walk over scores began.
        axes: where in `tensor` the axes of that one are.
    """

    tensor: str
    class_axis: int = 1
    axes: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def axis(self) -> int:
        """The axis of the classes here."""
        return self.axes[self.class_axis]

    @property
    def is_upright(self) -> bool:
        """Whether batch, height and width are in the same order here as where it began."""
        others = [axis for i, axis in enumerate(self.axes) if i != self.class_axis]
        return others == sorted(others)


_Labels = tuple[Literal["argmax", "threshold"] | None, float | None, Literal["lower", "higher"]]


def find_tail(graph: OnnxGraph, *, output: str | None = None) -> Tail | None:
    """Walk back from an output to the scores that it is made of.

    Args:
        output: which; None means the first.

    Returns:
        What was found; None where the output is neither float scores nor class ids made of them
        by an ArgMax over axis 1 or 3 or a comparison with a constant.
    """
    name = graph.outputs[0].name if output is None else output
    walk = _Walk(name)
    labels, threshold, tie = _walk_labels(graph, walk)
    if labels is None:
        described = graph.tensor(name)
        if described is not None and described.dtype not in (*_FLOATS, None):
            return None
        walk = _Walk(name)
    elif walk.axis not in (1, 3):
        return None
    activation = _walk_scores(graph, walk, squeeze=labels == "threshold")
    if not walk.is_upright or not _is_rank(graph, walk.tensor, 4):
        return None
    scores, class_axis = walk.tensor, walk.axis
    crops = _walk_crops(graph, walk)
    resize = graph.producer(walk.tensor)
    if resize is None or not _is_bilinear(graph, resize):
        resize, crops, walk.tensor = None, (), scores
    else:
        walk.tensor = resize.inputs[0]
    low_scores, low_axis = (None, class_axis) if resize is None else (walk.tensor, walk.axis)
    return Tail(
        output=name,
        scores=scores,
        class_axis=class_axis,
        low_scores=low_scores,
        low_class_axis=low_axis,
        coordinates=None if resize is None else _coordinates(resize),
        activation=activation,
        low_activation=None if activation else _walk_scores(graph, walk, squeeze=False),
        labels=labels,
        threshold=threshold,
        tie=tie,
        crops=crops,
    )


def _walk_labels(graph: OnnxGraph, walk: _Walk) -> _Labels:
    """Go back over what makes class ids out of scores."""
    node = graph.producer(walk.tensor)
    changed = False
    while node is not None and (node.op_type in _LABEL_PASSES or _takes_first(graph, node)):
        # of class ids, bool leaves two; without keepdims, [:, 0] is the first row
        changed = changed or node.attributes.get("to") == _BOOL or node.op_type == "Gather"
        walk.tensor = node.inputs[0]
        node = graph.producer(walk.tensor)
    if node is None:
        return None, None, "lower"
    if node.op_type == "ArgMax" and not changed:
        axis = node.attributes.get("axis", 0)
        walk.tensor = node.inputs[0]
        walk.class_axis = axis % 4 if isinstance(axis, int) and -4 <= axis < 4 else 0
        return "argmax", None, "higher" if node.attributes.get("select_last_index") else "lower"
    tie = _THRESHOLDS.get(node.op_type)
    if node.op_type == "Not":  # opset 11 has no GreaterOrEqual, and writes Less and Not
        inner = graph.producer(node.inputs[0])
        if inner is not None and inner.op_type == "Less":
            node, tie = inner, "higher"
    if tie is not None:
        limit = graph.constant(node.inputs[1])
        if limit is not None and limit.size == 1:
            walk.tensor = node.inputs[0]
            return "threshold", float(limit.reshape(-1)[0]), tie
    return None, None, "lower"


def _walk_scores(
    graph: OnnxGraph, walk: _Walk, *, squeeze: bool
) -> Literal["softmax", "sigmoid"] | None:
    """Go back to the tensor before the activation, over what only moves or copies scores."""
    activation: Literal["softmax", "sigmoid"] | None = None
    while (node := graph.producer(walk.tensor)) is not None:
        if node.op_type == "Transpose":
            given = node.attributes.get("perm")
            perm = given if isinstance(given, tuple) else ()
            order = [axis for axis in perm if isinstance(axis, int)]
            if sorted(order) != [0, 1, 2, 3]:
                break
            axes = tuple(order[axis] for axis in walk.axes)
            if axes[walk.class_axis] not in (1, 3):
                break
            walk.axes = axes
        elif node.op_type in _ACTIVATIONS:
            if activation is not None or not _is_over_classes(graph, node, walk.axis):
                break
            activation = _ACTIVATIONS[node.op_type]
        elif not (
            node.op_type == "Identity"
            or (squeeze and (node.op_type == "Squeeze" or _takes_first(graph, node)))
            or (node.op_type == "Cast" and node.attributes.get("to") in _WIDE_FLOATS)
        ):
            break
        walk.tensor = node.inputs[0]
    return activation


def _walk_crops(graph: OnnxGraph, walk: _Walk) -> tuple[Node, ...]:
    """Go back over Slices that have their bounds as inputs, as from opset 10 on."""
    crops: list[Node] = []
    while (node := graph.producer(walk.tensor)) is not None:
        if node.op_type != "Slice" or len(node.inputs) < 3:
            break
        crops.append(node)
        walk.tensor = node.inputs[0]
    return tuple(reversed(crops))


def _takes_first(graph: OnnxGraph, node: Node) -> bool:
    """Say whether it is `x[:, 0]`, which does for a single class what Squeeze does."""
    if node.op_type != "Gather" or node.attributes.get("axis", 0) != 1:
        return False
    index = graph.constant(node.inputs[1])
    return index is not None and index.ndim == 0 and int(index) == 0


def _is_over_classes(graph: OnnxGraph, node: Node, class_axis: int) -> bool:
    if node.op_type == "Sigmoid":
        return True
    by_axis = graph.opset >= _SOFTMAX_BY_AXIS_OPSET
    axis = node.attributes.get("axis", -1 if by_axis else 1)
    if not isinstance(axis, int) or not -4 <= axis < 4 or axis % 4 != class_axis:
        return False
    return by_axis or class_axis == 3  # the last axis is all there are from there on


def _is_bilinear(graph: OnnxGraph, node: Node) -> bool:
    if node.op_type == "ConvTranspose":
        return find_bilinear_transposed(graph, node) is not None
    attributes = node.attributes
    return (
        node.op_type == "Resize"
        and attributes.get("mode") == "linear"
        and not attributes.get("antialias")
        and not attributes.get("exclude_outside")
        and attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        and _coordinates(node) != "tf_crop_and_resize"
    )


def _coordinates(node: Node) -> str:
    if node.op_type == "ConvTranspose":
        return "transposed"
    default = "half_pixel" if len(node.inputs) > 2 else "asymmetric"  # opset 10 has two inputs
    return str(node.attributes.get("coordinate_transformation_mode", default))


def _is_rank(graph: OnnxGraph, name: str, rank: int) -> bool:
    described = graph.tensor(name)
    return described is None or described.dims is None or len(described.dims) == rank
