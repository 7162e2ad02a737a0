"""How near two class maps are: confusion, mean IoU, agreement, near ties, borders; defined once.

Works on NumPy arrays of class ids, so that the exporter and the benchmark count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.names import IGNORE_LABEL, Array

__all__ = [
    "BORDER_PX",
    "MIN_CLASS_SHARE",
    "NEAR_TIE_SHARE",
    "Disagreement",
    "border_mask",
    "confusion_matrix",
    "frequency_weighted_iou",
    "label_agreement",
    "mean_accuracy",
    "mean_iou",
    "pixel_accuracy",
    "split_disagreement",
    "top_two_margin",
    "worst_class_iou",
]

BORDER_PX = 2
"""Pixels this near to one of another class are at a border: labels drawn by hand are no better."""

NEAR_TIE_SHARE = 0.01
"""Of the spread of the reference's scores: a margin of more is no tie, however a variant errs."""

MIN_CLASS_SHARE = 1e-3
"""Of the pixels: the worst class is none of those with fewer, where a few pixels decide."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Pixels where a class map differs from its reference.

    Attributes:
        pixels: how many were compared.
        near_ties: differ, and the reference's two best scores are nearly equal, see
            `split_disagreement`.
        real: differ, and the reference was sure.
        at_borders: differ, of either kind, within `BORDER_PX` of a class border of the reference;
            None where this was not counted.
    """

    pixels: int
    near_ties: int
    real: int
    at_borders: int | None = None

    def __add__(self, other: Disagreement) -> Disagreement:
        known = self.at_borders is not None and other.at_borders is not None
        return Disagreement(
            self.pixels + other.pixels,
            self.near_ties + other.near_ties,
            self.real + other.real,
            (self.at_borders or 0) + (other.at_borders or 0) if known else None,
        )

    @property
    def label_agreement(self) -> float:
        """Share of pixels with the reference's label, 0..1; 1 where there are no pixels."""
        return 1.0 - (self.near_ties + self.real) / self.pixels if self.pixels else 1.0

    @property
    def near_tie_share(self) -> float:
        """Share of pixels that differ as near ties, 0..1."""
        return self.near_ties / self.pixels if self.pixels else 0.0

    @property
    def real_share(self) -> float:
        """Share of pixels that really differ, 0..1."""
        return self.real / self.pixels if self.pixels else 0.0

    @property
    def boundary_share(self) -> float | None:
        """Share, 0..1, of the pixels that differ which are at a class border of the reference.

        None where no pixel differs, or borders were not counted.
        """
        differ = self.near_ties + self.real
        return None if self.at_borders is None or not differ else self.at_borders / differ


def confusion_matrix(
    prediction: Array,
    reference: Array,
    num_classes: int,
    *,
    ignore_label: int | None = IGNORE_LABEL,
) -> Array:
    """Count how often each class of the reference was given each label.

    Confusions of several images add up.

    Args:
        prediction, reference: class ids of any integer dtype and one shape.
        ignore_label: pixels with this id in the reference are left out; None leaves none out.
            Where the id is a class of the network (256 classes and more), it is a class.

    Returns:
        int64 [num_classes, num_classes]; rows are the reference's classes.

    Raises:
        ValueError: shapes differ, or an id is outside 0..num_classes-1.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction is {list(prediction.shape)} and reference {list(reference.shape)}; "
            "they must have one shape"
        )
    rows = reference.astype(np.int64).ravel()
    columns = prediction.astype(np.int64).ravel()
    if ignore_label is not None and not 0 <= ignore_label < num_classes:
        counted = rows != ignore_label
        rows, columns = rows[counted], columns[counted]
    for name, ids in (("reference", rows), ("prediction", columns)):
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= num_classes):
            found = np.unique(ids[(ids < 0) | (ids >= num_classes)])[:5]
            raise ValueError(
                f"{name} has class ids {found.tolist()}; expected 0..{num_classes - 1}"
                + ("" if ignore_label is None else f" or {ignore_label} for pixels to leave out")
            )
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)  # [C, C]


def mean_iou(confusion: Array) -> tuple[float, Array]:
    """Give the mean intersection over union of the classes that the reference holds.

    Args:
        confusion: [C, C], rows are the reference's classes, pooled over all images.

    Returns:
        The mean, 0..1, NaN where the reference holds no class at all; and one value a class,
        float64 [C], NaN for classes absent from the reference.
    """
    hits = np.diag(confusion).astype(np.float64)
    in_reference = confusion.sum(axis=1).astype(np.float64)
    union = in_reference + confusion.sum(axis=0) - hits
    per_class = np.full(len(hits), np.nan)
    present = in_reference > 0
    per_class[present] = hits[present] / union[present]
    return (float(per_class[present].mean()) if present.any() else float("nan")), per_class


def worst_class_iou(confusion: Array) -> float | None:
    """Give the lowest intersection over union of the classes with `MIN_CLASS_SHARE` of the pixels.

    Args:
        confusion: int64 [C, C], rows are the reference's classes, pooled over all images.

    Returns:
        0..1; None where fewer than two classes have so many pixels: one alone shows nothing.
    """
    in_reference = confusion.sum(axis=1)
    counted = (in_reference > 0) & (in_reference >= MIN_CLASS_SHARE * in_reference.sum())
    if np.count_nonzero(counted) < 2:
        return None
    _, per_class = mean_iou(confusion)
    return float(per_class[counted].min())


def pixel_accuracy(confusion: Array) -> float:
    """Give the share of counted pixels with the right label, 0..1; NaN where none counted.

    Args:
        confusion: int64 [C, C], rows are the reference's classes.
    """
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


def label_agreement(labels: Array, reference: Array) -> float:
    """Give the share of pixels with the reference's label, 0..1.

    Args:
        labels, reference: class ids of any integer dtype and one shape.

    Raises:
        ValueError: shapes differ, or there are no pixels.
    """
    if labels.shape != reference.shape or not labels.size:
        raise ValueError(
            f"labels are {list(labels.shape)} and reference {list(reference.shape)}; "
            "they must have one shape and not be empty"
        )
    return float(np.count_nonzero(labels == reference)) / labels.size


def top_two_margin(scores_nchw: Array) -> Array:
    """Give how far the best class is ahead of the second best.

    Args:
        scores_nchw: float [N, C, H, W]; with one class the margin is the distance from 0.

    Returns:
        float32 [N, H, W], 0 or more.
    """
    if scores_nchw.shape[1] == 1:
        return np.abs(scores_nchw[:, 0]).astype(np.float32)
    best = scores_nchw[:, 0].copy()
    second = np.full_like(best, -np.inf)
    for index in range(1, scores_nchw.shape[1]):  # one class at a time keeps memory at [N, H, W]
        candidate = scores_nchw[:, index]
        np.maximum(second, np.minimum(best, candidate), out=second)
        np.maximum(best, candidate, out=best)
    return (best - second).astype(np.float32)


def border_mask(labels: Array, *, distance_px: int = BORDER_PX) -> Array:
    """Mark the pixels with a pixel of another class near them.

    Args:
        labels: class ids [H, W], 0..65535.
        distance_px: rows and columns that count as near; diagonals are as near as their larger
            part.

    Returns:
        bool [H, W]. Beyond the image there is no class, hence no border.
    """
    import cv2

    ids = labels.astype(np.uint16)
    window = np.ones((2 * distance_px + 1, 2 * distance_px + 1), np.uint8)
    mask: Array = cv2.dilate(ids, window) != cv2.erode(ids, window)
    return mask


def split_disagreement(
    labels: Array,
    reference: Array,
    margin: Array,
    *,
    score_error: float,
    score_spread: float,
    at_border: Array | None = None,
) -> Disagreement:
    """Split the pixels that differ into near ties and real disagreements.

    A near tie is a pixel where the reference's best class is ahead by less than the score error,
    and by less than `NEAR_TIE_SHARE` of the score spread. Without the second bound, which is the
    reference's own, a variant that errs enough would declare all its errors near ties.

    Args:
        labels, reference: class ids, [N, H, W] or [H, W].
        margin: how far the reference's best class is ahead, of the same shape.
        score_error: largest absolute difference measured between the scores of both.
        score_spread: the reference's largest score less its smallest.
        at_border: of the same shape, as `border_mask` gives it; None leaves borders uncounted.

    Raises:
        ValueError: shapes differ.
    """
    if not labels.shape == reference.shape == margin.shape:
        raise ValueError(
            f"labels are {list(labels.shape)}, reference {list(reference.shape)} and margin "
            f"{list(margin.shape)}; they must have one shape"
        )
    differs = labels != reference
    tie = min(score_error, NEAR_TIE_SHARE * score_spread)
    near = int(np.count_nonzero(differs & (margin < tie)))
    borders = None if at_border is None else int(np.count_nonzero(differs & at_border))
    return Disagreement(labels.size, near, int(np.count_nonzero(differs)) - near, borders)


def mean_accuracy(confusion: Array) -> float:
    """Give the mean, over the classes that the reference holds, of the share labelled right.

    The second of the paper's four metrics (Long, Shelhamer, Darrell 2015, section 5), beside
    `pixel_accuracy`, `mean_iou` and `frequency_weighted_iou`.

    Args:
        confusion: int64 [C, C], rows are the reference's classes.

    Returns:
        0..1; NaN where the reference holds no class at all.
    """
    in_reference = confusion.sum(axis=1).astype(np.float64)
    present = in_reference > 0
    if not present.any():
        return float("nan")
    return float((np.diag(confusion)[present] / in_reference[present]).mean())


def frequency_weighted_iou(confusion: Array) -> float:
    """Give the mean intersection over union, each class weighed by its pixels in the reference.

    Args:
        confusion: int64 [C, C], rows are the reference's classes.

    Returns:
        0..1; NaN where the reference holds no class at all.
    """
    in_reference = confusion.sum(axis=1).astype(np.float64)
    if not in_reference.any():
        return float("nan")
    _, per_class = mean_iou(confusion)
    return float(np.nansum(in_reference * per_class) / in_reference.sum())
