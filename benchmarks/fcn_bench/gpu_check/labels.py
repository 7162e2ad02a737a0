"""Compare the labels that the GPU makes of a plan's scores with the CPU's, for make gpu-check.

A disagreement is a near tie where the two best scores are closer than what rounding, or the
measured error of the scores, explains; every other one is real, and there must be none.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.graph.peel import peel_tail
from fcn_deploy.graph.scan import scan_onnx, with_outputs
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.head import upsample_argmax
from fcn_deploy.names import Array
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.fidelity import Disagreement, split_disagreement, top_two_margin

__all__ = ["ScoresGraph", "check_gpu_labels", "cut_at_scores", "label_sizes", "time_gpu_labels"]

# of the largest score. The kernel has the head's weights and adds up four products of float32;
# ONNX Runtime's weights may differ from these in float32's last bits, times the pixel's coordinate
_KERNEL_ROUNDING = 2e-6
_RESIZE_ROUNDING = 1e-4

_SMALLEST_THRESHOLD = 1e-30
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class ScoresGraph:
    """A graph that was cut before its upsampling.

    Attributes:
        data: the ONNX file, which ends in the scores.
        scores: their name, in the whole graph too.
        labels: of the whole graph, the output's name.
    """

    data: bytes
    scores: str
    labels: str


def cut_at_scores(data: bytes, *, name: str, folder: Path) -> ScoresGraph | str:
    """Cut a graph that ends in labels, so that what runs its plan makes them of the scores.

    Args:
        data: the ONNX file.
        folder: that it lies in.

    Returns:
        The graph, or a phrase that says why a plan of it is not labelled as it is itself.
    """
    graph = scan_onnx(data, name=name, folder=folder)
    if graph.external_files:
        return "its weights lie in files of their own"
    peeled = peel_tail(graph, find_tail(graph))
    if isinstance(peeled, str):
        return peeled
    if peeled.factors is not None or peeled.coordinates == "align_corners":
        return "its upsampling is not the usual one to the image's size"
    if abs(peeled.threshold) > _SMALLEST_THRESHOLD:
        return f"a plan by itself has the threshold 0, the graph {peeled.threshold:.3g}"
    scores = graph.tensor(peeled.scores)
    if scores is not None and scores.dtype not in ("float32", None):
        return f"its scores are {scores.dtype}"
    return ScoresGraph(with_outputs(data, (peeled.scores,)), peeled.scores, graph.outputs[0].name)


def label_sizes(shapes: ShapeRange) -> tuple[tuple[int, int], ...]:
    """Give the size that is served and, within the range, one of other upsampling ratios.

    Returns:
        (height, width) in px; the second one's sides are no multiples of the first's.
    """
    served = (shapes.opt[1], shapes.opt[2])
    ends = [(shapes.min[axis], shapes.max[axis]) for axis in (1, 2)]
    smaller = (served[0] * 3 // 4 - 3, served[1] * 7 // 8 - 5)
    larger = (served[0] * 5 // 4 + 3, served[1] * 9 // 8 + 5)
    sizes = [served]
    for height, width in (smaller, larger):
        size = [
            min(max(side, low), high) // shapes.multiple_of * shapes.multiple_of
            for side, (low, high) in zip((height, width), ends, strict=True)
        ]
        fits = all(low <= side <= high for side, (low, high) in zip(size, ends, strict=True))
        if fits and size[0] != served[0] and size[1] != served[1]:
            sizes.append((size[0], size[1]))
            break
    return tuple(sizes)


def check_gpu_labels(
    segmenter: Segmenter,
    graph: ScoresGraph,
    frames_bgr: Array,
    *,
    reference: ExecutionContext,
    least: float,
) -> dict[str, Any]:
    """Compare a plan's labels with the head's of the same scores, and with ONNX Runtime's.

    Args:
        segmenter: of the plan of `graph`.
        frames_bgr: uint8 [N, H, W, 3].
        reference: the whole graph, with `graph.scores` and `graph.labels` as outputs.
        least: share of pixels with ONNX Runtime's label.

    Raises:
        FcnDeployError: a disagreement is real, there are too many near ties, or runs at once
            differ from one alone.
    """
    if not segmenter.head.startswith("on the GPU"):
        raise FcnDeployError(f"the labels are not made on the GPU, but {segmenter.head}.")
    frames = list(frames_bgr)
    size: tuple[int, int] = frames_bgr.shape[1:3]
    feeds = segmenter.prepare(frames)
    outputs = segmenter.execute(feeds, scores=True)
    scores = segmenter.scores_of(outputs)
    labels = _labels(segmenter, outputs, frames)
    wanted = reference.execute(feeds)
    wanted_scores = wanted[graph.scores].astype(np.float32)
    largest = float(max(np.abs(scores).max(), np.abs(wanted_scores).max()))
    score_error = float(np.abs(scores - wanted_scores).max())

    by_head = _disagreement(
        segmenter,
        labels=labels,
        reference=upsample_argmax(scores, size),
        scores=scores,
        explained=_KERNEL_ROUNDING * largest,
    )
    # the error moves two scores, towards each other at worst
    explained = 2 * score_error + _RESIZE_ROUNDING * largest
    by_graph = _disagreement(
        segmenter,
        labels=labels,
        reference=wanted[graph.labels],
        scores=wanted_scores,
        explained=explained,
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        runs = pool.map(lambda _: _labels(segmenter, segmenter.execute(feeds), frames), range(8))
        same = all(np.array_equal(run, labels) for run in runs)
    found = {
        "size": list(size),
        "upsampling": [side / count for side, count in zip(size, scores.shape[2:], strict=True)],
        "score_error": score_error,
        "against_head": _counts(by_head),
        "against_onnxruntime": _counts(by_graph),
        "runs_at_once_agree": same,
    }
    if by_head.real or by_graph.real or by_graph.label_agreement < least or not same:
        raise FcnDeployError(
            f"labels made on the GPU differ: {found}; expected no real disagreement, at least "
            f"{least} of ONNX Runtime's labels, and runs at once that agree with one."
        )
    return found


def time_gpu_labels(segmenter: Segmenter, frames_bgr: Array, *, runs: int) -> dict[str, float]:
    """Time a plan with what labels its scores, by CUDA events; see `time_plan`.

    Args:
        frames_bgr: uint8 [N, H, W, 3].

    Returns:
        Medians of `compute_ms` and `transfer_ms`.

    Raises:
        RuntimeError: the segmenter does not time its runs.
    """
    feeds = segmenter.prepare(list(frames_bgr))
    for _ in range(5):
        segmenter.execute_timed(feeds)
    compute, transfer = [], []
    for _ in range(runs):
        _, times = segmenter.execute_timed(feeds)
        if times is None:
            raise RuntimeError("a plan is timed by its GPU")
        compute.append(times.compute_ms)
        transfer.append(times.transfer_ms)
    return {
        "compute_ms": statistics.median(compute),
        "transfer_ms": statistics.median(transfer),
    }


def _labels(
    segmenter: Segmenter, outputs: Mapping[str, Array], frames_bgr: Sequence[Array]
) -> Array:
    results = segmenter.finish(outputs, frames_bgr)
    return np.stack([result.labels for result in results])  # [N, H, W]


def _disagreement(
    segmenter: Segmenter, labels: Array, reference: Array, scores: Array, explained: float
) -> Disagreement:
    """Count pixels that differ; `scores` [N, C, h, w] are those that the reference is made of."""
    size: tuple[int, int] = labels.shape[1:]
    counts = []
    for one, other, image in zip(labels, reference, scores, strict=True):  # [C, H, W] is large
        margin = top_two_margin(segmenter.scores_at_pixels(image, size)[np.newaxis])[0]
        spread = float(np.ptp(image))
        counts.append(
            split_disagreement(one, other, margin, score_error=explained, score_spread=spread)
        )
    return sum(counts[1:], counts[0])


def _counts(found: Disagreement) -> Mapping[str, float | int]:
    return {
        "label_agreement": found.label_agreement,
        "near_ties": found.near_ties,
        "real": found.real,
    }
