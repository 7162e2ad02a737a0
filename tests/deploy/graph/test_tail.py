"""The end of a graph is recognised in its usual forms, and not where it is something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import Tail, find_tail
from tests.deploy.onnx_models import segmenter_model

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
HALF = numpy_helper.from_array(np.array(0.5, np.float32), "half")
SCORES_DIMS = ("n", 5, "h", "w")


def tail_of(*nodes: onnx.NodeProto, dtype: int = UINT8, opset: int = 21) -> Tail | None:
    dims = SCORES_DIMS if dtype == FLOAT else ("n", "h", "w")
    model = segmenter_model(
        nodes, output_dtype=dtype, output_dims=dims, extra_initializers=[HALF], opset=opset
    )
    return find_tail(scan_onnx(model.SerializeToString()))


def test_labels_by_argmax_lead_to_the_scores_before_the_resize() -> None:
    tail = find_tail(scan_onnx(segmenter_model().SerializeToString()))

    assert tail == Tail(
        output="labels",
        scores="full",
        class_axis=1,
        low_scores="network_scores",
        low_class_axis=1,
        coordinates="half_pixel",
        activation=None,
        low_activation=None,
        labels="argmax",
        threshold=None,
        tie="lower",
    )


def test_softmax_at_full_size_is_stepped_over() -> None:
    tail = tail_of(
        helper.make_node("Softmax", ["full"], ["p"], axis=1),
        helper.make_node("ArgMax", ["p"], ["ids"], axis=-3, keepdims=1),
        helper.make_node("Squeeze", ["ids"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["labels"], to=UINT8),
    )

    assert tail is not None
    assert (tail.scores, tail.activation, tail.labels) == ("full", "softmax", "argmax")
    assert tail.low_scores == "network_scores"


def test_threshold_on_sigmoid_is_found_with_its_value() -> None:
    tail = tail_of(
        helper.make_node("Squeeze", ["full"], ["one"]),
        helper.make_node("Sigmoid", ["one"], ["p"]),
        helper.make_node("Greater", ["p", "half"], ["is"]),
        helper.make_node("Cast", ["is"], ["labels"], to=UINT8),
    )

    assert tail is not None
    assert (tail.scores, tail.activation, tail.labels) == ("full", "sigmoid", "threshold")
    assert tail.threshold == 0.5


def test_argmax_over_the_last_axis_of_nhwc_scores_is_followed_through_the_transpose() -> None:
    tail = tail_of(
        helper.make_node("Transpose", ["full"], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("ArgMax", ["nhwc"], ["ids"], axis=3, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
    )

    assert tail is not None
    assert (tail.scores, tail.class_axis, tail.low_scores) == ("full", 1, "network_scores")


def test_scores_as_output_have_no_labels() -> None:
    tail = tail_of(helper.make_node("Identity", ["full"], ["labels"]), dtype=FLOAT)

    assert tail is not None
    assert (tail.labels, tail.scores, tail.low_scores) == (None, "full", "network_scores")


def test_probabilities_that_are_enlarged_are_said_to_be_such() -> None:
    size = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    model = segmenter_model(
        [
            helper.make_node("Softmax", ["network_scores"], ["p"], axis=1),
            helper.make_node("Resize", ["p", "", "scales"], ["big"], mode="linear"),
            helper.make_node("ArgMax", ["big"], ["ids"], axis=1, keepdims=0),
            helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
        ],
        extra_initializers=[size],
    )

    tail = find_tail(scan_onnx(model.SerializeToString()))

    assert tail is not None
    assert (tail.scores, tail.low_scores, tail.probabilities) == ("big", "p", True)
    assert tail.activation is None


@pytest.mark.parametrize("axis", [0, 2, -2, 99, -99])
def test_argmax_over_an_axis_that_is_not_the_classes_is_no_tail(axis: int) -> None:
    tail = tail_of(
        helper.make_node("ArgMax", ["full"], ["ids"], axis=axis, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
    )

    assert tail is None


def test_integers_made_in_another_way_are_no_tail() -> None:
    tail = tail_of(
        helper.make_node("ReduceMax", ["full"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["labels"], to=UINT8),
    )

    assert tail is None


def test_scores_that_are_no_enlargement_have_no_low_scores() -> None:
    tail = tail_of(
        helper.make_node("Relu", ["full"], ["r"]),
        helper.make_node("ArgMax", ["r"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
    )

    assert tail is not None
    assert (tail.scores, tail.low_scores, tail.coordinates) == ("r", None, None)


@pytest.mark.parametrize("attribute", [{"mode": "nearest"}, {"mode": "linear", "antialias": 1}])
def test_a_resize_that_is_not_plainly_bilinear_is_not_peeled(attribute: dict[str, Any]) -> None:
    tail = tail_of(
        helper.make_node("Resize", ["network_scores", "", "", "full_size"], ["big"], **attribute),
        helper.make_node("ArgMax", ["big"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
    )

    assert tail is not None
    assert (tail.scores, tail.low_scores) == ("big", None)


def test_softmax_of_old_opsets_over_all_axes_at_once_is_not_stepped_over() -> None:
    tail = tail_of(
        helper.make_node("Softmax", ["full"], ["p"], axis=1),
        helper.make_node("ArgMax", ["p"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=UINT8),
        opset=11,
    )

    assert tail is not None
    assert (tail.scores, tail.activation) == ("p", None)
