"""Compare the labels of what was timed with PyTorch's labels and with ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcn_bench.network import Network, segment
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import Array

__all__ = ["Agreement", "confusion_on_files", "measure_agreement", "write_reference"]

_WEAK_MARGIN = 1e-3  # of the scores' own range; bf16 keeps 8 bits, 4e-3 of a value
_LABEL_IDS = 256  # a confusion matrix of that many classes takes half a megabyte


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels of one row against PyTorch's in fp32, on the frames that were timed.

    Attributes:
        label_agreement: share of pixels with PyTorch's label; None without a baseline.
        near_tie_share: share of pixels that differ where PyTorch's two best scores are closer than
            this row's measured score error and than 1 % of the spread of PyTorch's scores; None
            where the scores are hidden.
        miou_vs_baseline: mean IoU with PyTorch's labels as the reference.
        score_error: largest absolute difference of a score.
        weak_margin_share: share of pixels where PyTorch's own margin is below a thousandth of the
            range of its scores: random weights have many.
        faults: wrong shape, wrong type, constant output.
    """

    label_agreement: float | None = None
    near_tie_share: float | None = None
    miou_vs_baseline: float | None = None
    score_error: float | None = None
    weak_margin_share: float | None = None
    faults: tuple[str, ...] = ()


def write_reference(network: Network, frames_bgr: Sequence[Array], folder: Path) -> None:
    """Write PyTorch's labels and scores of each frame, for `measure_agreement` to read.

    Args:
        frames_bgr: uint8 [H, W, 3] each.

    Raises:
        BenchmarkError: the network gives no scores.
    """
    for index, frame in enumerate(frames_bgr):
        labels, scores = network.labels_and_scores(frame)
        if scores is None:
            raise BenchmarkError("the baseline gives no scores.")
        np.save(folder / f"scores_{index}.npy", scores)
        np.save(folder / f"labels_{index}.npy", labels)


def measure_agreement(
    network: Network, frames_bgr: Sequence[Array], reference: Path | None
) -> Agreement:
    """Segment every frame and compare.

    Args:
        frames_bgr: uint8 [H, W, 3] each.
        reference: folder of `write_reference`; None where there is no baseline.
    """
    if reference is None:
        found = [segment(network, [frame])[0] for frame in frames_bgr]
        return Agreement(faults=_faults(found, frames_bgr))
    pairs = [network.labels_and_scores(frame) for frame in frames_bgr]
    found = [labels for labels, _ in pairs]
    faults = _faults(found, frames_bgr)
    if any("instead of" in fault for fault in faults):
        return Agreement(faults=faults)
    return replace(_compare(pairs, reference), faults=faults)


def confusion_on_files(
    network: Network, images: Path, labels: Path, *, num_labels: int
) -> list[list[int]]:
    """Segment labelled images at their own size and count against their labels.

    Returns:
        [num_labels, num_labels]; rows are the ground truth's classes.

    Raises:
        SourceError: a file is missing or cannot be read.
        InputError: labels are of another size than their image, or of unknown classes.
    """
    from fcn_export.check.fidelity import confusion_matrix
    from fcn_models.labelled_images import EvalSet

    total = np.zeros((num_labels, num_labels), np.int64)
    for item in EvalSet.find(images, labels).items(color="bgr", num_labels=num_labels):
        total += confusion_matrix(segment(network, [item.frame])[0], item.labels, num_labels)
    return [[int(count) for count in row] for row in total]


def _compare(pairs: Sequence[tuple[Array, Array | None]], reference: Path) -> Agreement:
    from fcn_export.check.fidelity import (
        Disagreement,
        confusion_matrix,
        mean_iou,
        split_disagreement,
        top_two_margin,
    )

    total = Disagreement(0, 0, 0)
    confusion = np.zeros((_LABEL_IDS, _LABEL_IDS), np.int64)
    errors: list[float | None] = []
    weak = 0
    for index, (labels, scores) in enumerate(pairs):
        wanted = np.load(reference / f"labels_{index}.npy", allow_pickle=False)
        theirs = np.load(reference / f"scores_{index}.npy", allow_pickle=False)
        margin = top_two_margin(theirs[None])[0]
        known = scores is not None and scores.shape == theirs.shape
        error = float(np.abs(np.asarray(scores) - theirs).max()) if known else None
        errors.append(error)
        spread = float(np.ptp(theirs))
        total += split_disagreement(
            labels, wanted, margin, score_error=error or 0.0, score_spread=spread
        )
        weak += int(np.count_nonzero(margin < _WEAK_MARGIN * spread))
        confusion += confusion_matrix(labels, wanted, _LABEL_IDS, ignore_label=None)
    measured = [error for error in errors if error is not None]
    complete = len(measured) == len(errors)
    return Agreement(
        label_agreement=total.label_agreement,
        near_tie_share=total.near_tie_share if complete else None,
        miou_vs_baseline=mean_iou(confusion)[0],
        score_error=max(measured) if complete else None,
        weak_margin_share=weak / total.pixels,
    )


def _faults(found: Sequence[Array], frames_bgr: Sequence[Array]) -> tuple[str, ...]:
    faults = []
    for labels, frame in zip(found, frames_bgr, strict=True):
        if labels.shape != frame.shape[:2]:
            faults.append(f"labels are {list(labels.shape)} instead of {list(frame.shape[:2])}")
            break
        if not np.issubdtype(labels.dtype, np.integer):
            faults.append(f"labels are {labels.dtype} instead of class ids")
            break
    values = {int(labels.flat[0]) for labels in found if labels.size}
    if len(values) == 1 and all((labels == labels.flat[0]).all() for labels in found):
        faults.append(f"constant output: every pixel of every input got label {values.pop()}")
    return tuple(faults)
