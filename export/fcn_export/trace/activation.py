"""Whether a network's scores are what the graph's head takes: logits, and no probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.names import Array
from fcn_export.check.reference import Reference
from fcn_export.check.sample_frames import as_batch, natural_frame
from fcn_export.graph_spec import SCORES, GraphSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["check_activation", "find_activation"]

_ACTIVATIONS = frozenset(("Sigmoid", "HardSigmoid", "Softmax"))
_AXIS_KEEPING = frozenset(("Cast", "Clip", "Identity", "Resize"))
_PASSES = _AXIS_KEEPING | {
    *("Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
}
_CLASS_AXES = (1, -3)  # of [N, C, h, w]
_FRAME_SIZE = (96, 128)
_SUM_TOLERANCE = 1e-3  # of probabilities in float32, thousands of classes included


def check_activation(
    graph: onnx.GraphProto,
    reference: Reference,
    spec: GraphSpec,
    shapes: ShapeRange,
    *,
    scores: str = SCORES,
    threshold_known: bool = False,
) -> None:
    """Refuse probabilities where the head would take them for logits.

    It does so for a single class, whose label is "score above 0", and for ``confidence``, which
    is a softmax or sigmoid of the scores. The labels of several classes are an argmax, to which
    a softmax makes no difference. Looks at the graph first, then at scores of varied frames.

    Args:
        graph: that holds the network.
        reference: the network itself.
        scores: the tensor in `graph` that the head takes.
        threshold_known: where to divide a single class's scores was read from its graph.

    Raises:
        UnsupportedModelError: they are probabilities.
    """
    one_class = spec.num_classes == 1 and not threshold_known
    if not one_class and spec.head != "confidence":
        return
    node = find_activation(graph, scores)
    if node is not None:
        found = f"come from {node.op_type} '{node.name or node.output[0]}'"
    elif spec.num_classes == 1 and threshold_known:
        return
    else:
        frames = _varied_frames(spec, shapes)
        values = np.stack([reference.scores(frame) for frame in frames])  # [frames, N, C, H, W]
        low, high = float(values.min()), float(values.max())
        # of a constant, such as that of weights that are all zero, nothing is known
        if not 0 <= low < high <= 1:
            return
        if not one_class and np.abs(values.sum(axis=2) - 1).max() > _SUM_TOLERANCE:
            return
        found = f"lie in {low:.3g}..{high:.3g} on {len(frames)} varied frames"
    if one_class:
        raise UnsupportedModelError(
            f"the scores of the network's only class {found}, as probabilities do; expected are "
            "logits, as a pixel is of the class where its score is above 0: all of them would be.",
            hint="Export the network without its last sigmoid, for instance in a module whose "
            "forward gives what the sigmoid takes; sigmoid above 0.5 is logit above 0.",
        )
    raise UnsupportedModelError(
        f"--head confidence makes probabilities of logits, and the network's scores {found}: they "
        "are probabilities already.",
        hint="Export the network without its last softmax or sigmoid, or with --head labels or "
        "--head scores.",
    )


def find_activation(graph: onnx.GraphProto, scores: str) -> onnx.NodeProto | None:
    """Find the sigmoid or softmax over classes that scores come from, however they were moved.

    Args:
        scores: name of a tensor [N, C, h, w].
    """
    producers = {name: maker for maker in graph.node for name in maker.output}
    keeps_axes = True
    node: onnx.NodeProto | None = producers.get(scores)
    while node is not None and node.op_type in _PASSES:
        keeps_axes = keeps_axes and node.op_type in _AXIS_KEEPING
        node = producers.get(node.input[0])
    if node is None or node.op_type not in _ACTIVATIONS:
        return None
    axis = next((each.i for each in node.attribute if each.name == "axis"), -1)
    if node.op_type == "Softmax" and keeps_axes and axis not in _CLASS_AXES:
        return None
    return node


def _varied_frames(spec: GraphSpec, shapes: ShapeRange) -> list[Array]:
    """Make batches of frames that a network has no reason to answer all alike."""
    height, width = _FRAME_SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    frames = [
        *(natural_frame(height, width, seed) for seed in range(3)),
        noise,
        np.zeros_like(noise),
        np.full_like(noise, 255),
    ]
    return [as_batch(frame, spec, shapes) for frame in frames]
