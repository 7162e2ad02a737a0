"""What counts as evidence, and what is made of it: ok, below, no evidence, differs, broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Array, Precision
from fcn_export.check.fidelity import Disagreement
from fcn_export.check.measure import Measured, Runner, measure
from fcn_export.check.sample_frames import at_usual_size, natural_frame, photographs
from fcn_models.labelled_images import EvalItem
from tests.export.check.three_colors import SPEC, WEIGHTS, ThreeColors, graph_of

PHOTOGRAPHS = Path(__file__).parents[3] / "export/fcn_export/check/photographs"
RANGE = ShapeRange((1, 32, 48), (1, 96, 80), (1, 160, 200))


def add_images(entry: Measured, count: int, confusion: list[list[int]]) -> None:
    table = np.array(confusion)
    wrong = int(table.sum() - np.trace(table))
    for number in range(count):
        entry.count_model(str(number), Disagreement(int(table.sum()), 0, wrong, 0), table)


@pytest.mark.parametrize(
    ("count", "confusion", "status"),
    [
        (4, [[9000, 0], [0, 1000]], "ok"),
        (3, [[9000, 0], [0, 1000]], "no evidence"),
        (4, [[9995, 0], [0, 5]], "no evidence"),  # a class of 5 in 10,000 pixels
        (4, [[98_000, 0], [50, 1950]], "below"),  # 99.95 % agree, but IoU is 0.975
        (4, [[9000, 0], [50, 950]], "below"),
        (4, [[9000, 0], [150, 850]], "broken"),
    ],
)
def test_a_reduced_precision_is_judged_by_agreement_worst_class_and_evidence(
    count: int, confusion: list[list[int]], status: str
) -> None:
    entry = Measured(Runner("openvino", Precision.BF16))
    add_images(entry, count, confusion)

    fidelity = entry.fidelity(Measured(None))

    assert fidelity.status == status
    assert (fidelity.images, fidelity.pixels) == (count, count * np.sum(confusion))


def test_an_image_on_which_the_model_finds_one_class_counts_for_nothing() -> None:
    entry = Measured(Runner("openvino", Precision.BF16))
    add_images(entry, 10, [[10_000, 0], [0, 0]])

    alone = entry.fidelity(Measured(None))
    add_images(entry, 1, [[5000, 0], [2500, 2500]])
    together = entry.fidelity(Measured(None))

    assert (alone.images, alone.pixels, alone.worst_class_iou) == (0, 0, None)
    assert (alone.label_agreement, alone.status) == (1.0, "no evidence")
    assert (together.images, together.label_agreement) == (1, 0.75)
    assert together.worst_class_iou == 0.5
    assert together.worst_image is not None
    assert together.worst_image.worst_class_iou == 0.5


def test_wrong_labels_on_images_of_one_class_count_against_a_variant() -> None:
    entry = Measured(Runner("openvino", Precision.INT8))
    add_images(entry, 4, [[9000, 0], [0, 1000]])
    add_images(entry, 28, [[0, 10_000], [0, 0]])  # empty scenes, full of class 1

    fidelity = entry.fidelity(Measured(None))

    assert (fidelity.images, fidelity.status) == (4, "broken")
    assert fidelity.label_agreement == 4 / 32


@pytest.mark.parametrize(("error", "status"), [(1e-5, "ok"), (2.5e-3, "differs")])
def test_fp32_of_every_backend_is_held_to_the_bound_of_verification(
    error: float, status: str
) -> None:
    entry = Measured(Runner("openvino", Precision.FP32), relative_score_error=error)
    add_images(entry, 1, [[5000, 0], [0, 5000]])

    assert entry.fidelity(Measured(None)).status == status


def test_scores_that_are_not_the_models_are_measured_on_each_backend(tmp_path: Path) -> None:
    wrong = WEIGHTS * np.float32(1.01)  # no label changes
    candidates = [Runner(name, Precision.FP32) for name in ("openvino", "onnxruntime")]
    frame = natural_frame(40, 60, 1)
    items = [EvalItem("one", frame, frame[..., 0])]

    _, found = measure(
        {Precision.FP32: graph_of(tmp_path, weights=wrong)},
        ThreeColors(),
        SPEC,
        RANGE,
        items,
        candidates=candidates,
        has_labels=False,
    )

    for entry in found:
        fidelity = entry.fidelity(Measured(None))
        assert fidelity.label_agreement == 1.0
        assert fidelity.relative_score_error == pytest.approx(0.01, rel=1e-3)
        assert fidelity.status == "differs"


def test_the_photographs_are_small_many_and_licensed_each() -> None:
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    licences = (PHOTOGRAPHS / "LICENCES.txt").read_text()

    frames = dict(photographs())

    assert list(frames) == [file.name for file in files]
    assert len(frames) == 12
    assert sum(file.stat().st_size for file in files) < 600_000
    for name, frame in frames.items():
        assert sorted(frame.shape) == [3, 256, 384]
        assert frame.dtype == np.uint8
        assert f"\n{name} " in licences


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((90, 70), (90, 70)),
        ((192, 320), (48, 80)),  # reduced to fit 96x80, with its proportions
        ((40, 400), (32, 80)),  # but no side below the smallest
        ((10, 20), (32, 48)),
    ],
)
def test_large_images_are_measured_at_the_usual_size(
    given: tuple[int, int], taken: tuple[int, int], rng: np.random.Generator
) -> None:
    frame: Array = rng.integers(0, 256, (*given, 3), np.uint8)

    assert at_usual_size(frame, RANGE).shape == (*taken, 3)
