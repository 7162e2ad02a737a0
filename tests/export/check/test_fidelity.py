"""Confusion, mean IoU, agreement and near ties against slow versions of the same definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fcn_deploy.names import Array
from fcn_export.check.fidelity import (
    Disagreement,
    border_mask,
    confusion_matrix,
    frequency_weighted_iou,
    label_agreement,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    split_disagreement,
    top_two_margin,
    worst_class_iou,
)

CLASSES = 4
label_maps = hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, CLASSES - 1))
references = hnp.arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))


def slow_iou(prediction: Array, reference: Array) -> list[float]:
    """Intersection over union of each class, pixel by pixel; NaN for absent classes."""
    pairs = [
        (int(p), int(r))
        for p, r in zip(prediction.ravel(), reference.ravel(), strict=True)
        if r != 255
    ]
    values = []
    for label in range(CLASSES):
        both = sum(p == label and r == label for p, r in pairs)
        either = sum(p == label or r == label for p, r in pairs)
        present = any(r == label for _, r in pairs)
        values.append(both / either if present else math.nan)
    return values


@given(prediction=label_maps, reference=references)
def test_mean_iou_is_that_of_counting_pixel_by_pixel(prediction: Array, reference: Array) -> None:
    expected = slow_iou(prediction, reference)

    mean, per_class = mean_iou(confusion_matrix(prediction, reference, CLASSES))

    np.testing.assert_allclose(per_class, expected, rtol=1e-12)
    present = [value for value in expected if not math.isnan(value)]
    if present:
        assert mean == pytest.approx(sum(present) / len(present))
    else:
        assert math.isnan(mean)


@given(first=label_maps, second=label_maps, reference=references)
def test_confusions_of_images_add_up(first: Array, second: Array, reference: Array) -> None:
    together = confusion_matrix(
        np.concatenate([first, second]), np.concatenate([reference, reference]), CLASSES
    )

    apart = confusion_matrix(first, reference, CLASSES) + confusion_matrix(
        second, reference, CLASSES
    )

    assert np.array_equal(together, apart)


def test_confusion_has_the_reference_in_rows() -> None:
    confusion = confusion_matrix(np.array([1, 1, 2]), np.array([0, 1, 255]), 3)

    assert confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion.dtype == np.int64
    assert pixel_accuracy(confusion) == 0.5


def test_255_is_a_class_where_there_are_so_many() -> None:
    confusion = confusion_matrix(np.array([255]), np.array([255], np.int32), 300)

    assert confusion[255, 255] == 1


def test_nothing_counted_is_not_a_number() -> None:
    confusion = confusion_matrix(np.array([0]), np.array([255]), 2)

    mean, per_class = mean_iou(confusion)

    assert math.isnan(mean)
    assert np.isnan(per_class).all()
    assert math.isnan(pixel_accuracy(confusion))


@pytest.mark.parametrize(("name", "prediction", "reference"), [
    ("reference", [0], [7]), ("prediction", [7], [0]), ("prediction", [-1], [0]),
])  # fmt: skip
def test_an_unknown_class_is_refused(
    name: str, prediction: list[int], reference: list[int]
) -> None:
    with pytest.raises(ValueError, match=f"{name} has class ids"):
        confusion_matrix(np.array(prediction), np.array(reference), CLASSES)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match="one shape"):
        label_agreement(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="not be empty"):
        label_agreement(np.zeros(0), np.zeros(0))


@given(
    scores=hnp.arrays(np.float32, (2, 5, 3, 4), elements=st.floats(-100, 100, width=32)),
)
def test_margin_is_the_best_less_the_second_best(scores: Array) -> None:
    ordered = np.sort(scores, axis=1)

    assert np.array_equal(top_two_margin(scores), ordered[:, -1] - ordered[:, -2])


def test_margin_of_one_class_is_the_distance_from_its_threshold() -> None:
    scores = np.array([[[[-2.0, 0.5]]]], np.float32)

    assert top_two_margin(scores).tolist() == [[[2.0, 0.5]]]


def test_a_disagreement_is_a_near_tie_only_below_the_score_error() -> None:
    labels = np.array([0, 1, 1, 1])
    reference = np.array([0, 0, 0, 1])
    margin = np.array([0.0, 0.05, 0.5, 0.0])

    split = split_disagreement(labels, reference, margin, score_error=0.1, score_spread=100.0)

    assert split == Disagreement(pixels=4, near_ties=1, real=1)
    assert split.label_agreement == label_agreement(labels, reference) == 0.5
    assert (split.near_tie_share, split.real_share) == (0.25, 0.25)


def test_exact_scores_leave_no_near_ties() -> None:
    split = split_disagreement(
        np.array([1]), np.array([0]), np.array([0.0]), score_error=0.0, score_spread=1.0
    )

    assert split.real == 1


def test_a_variant_that_errs_much_has_no_more_near_ties_than_the_reference_allows() -> None:
    labels, reference = np.array([1, 1, 1]), np.array([0, 0, 0])
    margin = np.array([0.05, 0.15, 5.0])  # 1 % of the spread is 0.1

    split = split_disagreement(labels, reference, margin, score_error=20.0, score_spread=10.0)

    assert (split.near_ties, split.real) == (1, 2)


def test_the_worst_class_is_found_among_those_with_a_thousandth_of_the_pixels() -> None:
    confusion = np.diag([9000, 900, 0, 5])
    confusion[1, 0] = 100  # 100 of class 1 were given class 0
    confusion[3, 0] = 4  # 9 of 10,009 pixels: fewer than a thousandth

    assert worst_class_iou(confusion) == pytest.approx(0.9)


@pytest.mark.parametrize("sizes", [[10_000, 0], [10_000, 5], [0, 0]])
def test_one_class_alone_has_no_worst_class(sizes: list[int]) -> None:
    assert worst_class_iou(np.diag(sizes)) is None


def test_no_pixels_agree_wholly() -> None:
    assert Disagreement(0, 0, 0).label_agreement == 1.0


@given(hnp.arrays(np.uint16, (6, 9), elements=st.sampled_from([0, 1, 300])))
def test_a_border_is_where_another_class_is_within_two_pixels(labels: Array) -> None:
    expected = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(*labels.shape):
        near = labels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        expected[y, x] = (near != labels[y, x]).any()

    assert (border_mask(labels) == expected).all()


def test_the_boundary_share_is_of_the_pixels_that_differ() -> None:
    reference = np.zeros((1, 1, 20), np.uint8)
    reference[..., 10:] = 1
    labels = reference.copy()
    labels[0, 0, [0, 8, 12]] = 2  # 2 px from the other class on either side, and far from it
    margin = np.ones(reference.shape, np.float32)

    found = split_disagreement(
        labels,
        reference,
        margin,
        score_spread=100.0,
        score_error=0.1,
        at_border=border_mask(reference[0])[None],
    )

    assert found.at_borders == 1  # 8 is two before the first of class 1; 12 is three behind the 0s
    assert found.boundary_share == pytest.approx(1 / 3)


def test_there_is_no_boundary_share_where_nothing_differs_or_nothing_was_counted() -> None:
    assert Disagreement(10, 0, 0, 0).boundary_share is None
    assert (Disagreement(10, 1, 1, 2) + Disagreement(10, 0, 1)).boundary_share is None
    assert (Disagreement(10, 1, 1, 2) + Disagreement(10, 0, 2, 0)).boundary_share == 0.5


# ---- the paper's four metrics


def test_the_papers_four_metrics_are_those_of_a_count_pixel_by_pixel(
    rng: np.random.Generator,
) -> None:
    reference = rng.integers(0, 4, (2, 7, 9))
    prediction = np.where(
        rng.random(reference.shape) < 0.6, reference, rng.integers(0, 5, (2, 7, 9))
    )
    reference[0, :2] = 255
    pairs = [
        (int(truth), int(said))
        for truth, said in zip(reference.ravel(), prediction.ravel(), strict=True)
        if truth != 255
    ]
    accuracies, weighted = [], 0.0
    for label in range(4):  # class 4 is predicted, but is not in the reference
        total = sum(truth == label for truth, _ in pairs)
        hits = sum(truth == said == label for truth, said in pairs)
        union = sum(label in pair for pair in pairs)
        accuracies.append(hits / total)
        weighted += total / len(pairs) * hits / union

    confusion = confusion_matrix(prediction, reference, 5)

    assert mean_accuracy(confusion) == pytest.approx(np.mean(accuracies))
    assert frequency_weighted_iou(confusion) == pytest.approx(weighted)


def test_the_papers_metrics_of_nothing_are_not_numbers() -> None:
    nothing = np.zeros((3, 3), np.int64)

    assert np.isnan(mean_accuracy(nothing))
    assert np.isnan(frequency_weighted_iou(nothing))
