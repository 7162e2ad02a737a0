"""Verification finds graphs that are not the model, and passes those that are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ParityError
from fcn_deploy.names import Array
from fcn_export.check.verify import ParityRow, unseen_shapes, verify
from fcn_export.onnx_file import write_onnx
from tests.export.check.three_colors import SPEC, WEIGHTS, ThreeColors, graph_of

SHAPES = ((1, 16, 20), (2, 31, 17))


def test_an_equal_graph_passes_with_one_row_a_shape(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    rows = verify(graph_of(tmp_path), ThreeColors(), SPEC, SHAPES, on_shape=seen.append)

    assert [(row.batch, row.height, row.width) for row in rows] == list(SHAPES)
    assert seen == [SHAPES[-1], *SHAPES[:-1], *SHAPES]  # the graph, then the model
    assert all(row.disagreement.label_agreement == 1.0 for row in rows)
    assert all(
        row.disagreement.pixels == n * h * w for row, (n, h, w) in zip(rows, SHAPES, strict=True)
    )


def test_wrong_weights_are_found_by_their_scores(tmp_path: Path) -> None:
    wrong = WEIGHTS.copy()
    wrong[0, 0] += 0.01

    with pytest.raises(ParityError, match=r"scores differ from PyTorch's at 1x16x20 .* rounding"):
        verify(graph_of(tmp_path, weights=wrong), ThreeColors(), SPEC, SHAPES)


def test_scores_within_rounding_but_wrong_labels_are_found(tmp_path: Path) -> None:
    file = graph_of(tmp_path)
    swapped = onnx.load_model_from_string(file.data)
    swapped.graph.node[3].attribute[0].i = 1
    swapped.graph.node[3].op_type = "ArgMin"
    file = write_onnx(swapped, tmp_path / "swapped.onnx")

    with pytest.raises(ParityError, match=r"% of the labels differ .* though it was sure"):
        verify(file, ThreeColors(), SPEC, SHAPES)


def test_ties_broken_by_rounding_are_no_fault(tmp_path: Path) -> None:
    # a class equal to another but for rounding: its labels may go either way
    twins = WEIGHTS.copy()
    twins[:, 1] = twins[:, 0]

    def rounded(scores: Array) -> Array:
        noise = np.random.default_rng(0).uniform(0, 1e-2, scores[:, 0].shape)
        tied = scores.copy()
        tied[:, 1] = tied[:, 0] + noise.astype(np.float32)
        return tied

    rows = verify(graph_of(tmp_path, weights=twins), ThreeColors(rounded), SPEC, SHAPES)

    assert all(row.disagreement.near_tie_share > 0.1 for row in rows)
    assert all(row.disagreement.real_share <= 1e-3 for row in rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_found(tmp_path: Path, value: float) -> None:
    def spoil(scores: Array) -> Array:
        scores[0, 1, 3, 4] = value
        return scores

    with pytest.raises(ParityError, match=r"scores at 16x20 px hold NaN or infinity"):
        verify(graph_of(tmp_path), ThreeColors(spoil), SPEC, SHAPES)


def test_an_output_that_does_not_follow_the_input_is_found(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"'labels' is \[1, 16, 18\] for an input of 16x20 px"):
        verify(graph_of(tmp_path, fixed_width=18), ThreeColors(), SPEC, SHAPES)


def test_a_graph_that_fails_to_run_is_found(tmp_path: Path) -> None:
    file = graph_of(tmp_path, weights=WEIGHTS)
    model = onnx.load_model_from_string(file.data)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((4, 3), np.float32), "weights")
    )
    del model.graph.input[0].type.tensor_type.shape.dim[3]
    dim = model.graph.input[0].type.tensor_type.shape.dim.add()
    dim.dim_param = "C"
    broken = write_onnx(model, tmp_path / "broken.onnx")

    with pytest.raises(ParityError, match="the graph does not run at 2x31x17"):
        verify(broken, ThreeColors(), SPEC, SHAPES)


def test_a_row_says_where_it_fails() -> None:
    from fcn_export.check.fidelity import Disagreement

    row = ParityRow(
        batch=3,
        height=97,
        width=65,
        max_score_error=1e-6,
        max_score=10.0,
        disagreement=Disagreement(1000, 5, 2),
    )

    with pytest.raises(ParityError, match=r"0.200% of the labels differ from PyTorch's at 3x97x65"):
        row.check("PyTorch")


def test_unseen_shapes_are_odd_wide_high_small_and_large() -> None:
    shapes = ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048))

    chosen = unseen_shapes(shapes, traced=(107, 151))

    assert len(chosen) >= 5
    assert {batch for batch, _, _ in chosen} == {1, 3}
    assert (1, 64, 64) in chosen
    assert any(height % 2 and width % 2 for _, height, width in chosen)
    assert any(height > width for _, height, width in chosen)
    assert any(height < width for _, height, width in chosen)
    assert 1000 * 1000 < max(h * w for _, h, w in chosen) <= 1024 * 1024
    assert (107, 151) not in {(h, w) for _, h, w in chosen}


def test_the_largest_shape_is_verified_on_request_only() -> None:
    shapes = ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048))

    assert (1, 2048, 2048) not in unseen_shapes(shapes, traced=None)
    assert (1, 2048, 2048) in unseen_shapes(shapes, traced=None, verify_max=True)


def test_shapes_keep_to_the_range_and_its_multiple() -> None:
    shapes = ShapeRange((1, 96, 96), (1, 96, 128), (2, 160, 192), multiple_of=32)

    chosen = unseen_shapes(shapes, traced=(96, 160))

    assert len(chosen) >= 5
    for batch, height, width in chosen:
        assert batch <= 2
        assert 96 <= height <= 160
        assert 96 <= width <= 192
        assert height % 32 == width % 32 == 0


def test_one_fixed_shape_is_verified_once() -> None:
    only = (2, 67, 95)

    assert unseen_shapes(ShapeRange(only, only, only), traced=None) == (only,)
