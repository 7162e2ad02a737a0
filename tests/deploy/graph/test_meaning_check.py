"""A graph's word is held against values, the user's too; probabilities are made once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from fcn_deploy.errors import ArtifactError, UnsupportedModelError
from fcn_deploy.graph.meaning import (
    FoundMeaning,
    asked_meaning,
    check_values,
    find_meaning,
    find_queries,
    probabilities,
)
from fcn_deploy.graph.scan import OnnxGraph, scan_onnx
from tests.deploy.onnx_models import model_of
from tests.deploy.output_graphs import FLOAT, Chain, images, run

HINT = r"--activation logits\|sigmoid\|softmax\|ids and --threshold X"


def meaning_of(activation: Any, classes: int | None = 1, **changes: Any) -> FoundMeaning:
    single = classes in (1, None) and activation in ("logits", "sigmoid")
    found = FoundMeaning(
        "y",
        "labels" if activation == "ids" else "scores",
        activation,
        1,
        classes,
        0.5 if single else None,
        "Conv",
    )
    return replace(found, **changes)


def ramp(low: float, high: float, classes: int = 1) -> list[Any]:
    values = np.linspace(low, high, classes * 4 * 6, dtype=np.float32)
    return [values.reshape(1, classes, 4, 6)]


def shares(classes: int) -> list[Any]:
    values = np.random.default_rng(0).random((2, classes, 4, 6), np.float32)
    return [values / values.sum(1, keepdims=True)]


def test_scores_of_one_class_that_look_like_probabilities_are_refused() -> None:
    with pytest.raises(ArtifactError, match=rf"taken for logits .* 0\.1 to 0\.9, as of .*{HINT}"):
        check_values(meaning_of("logits"), ramp(0.1, 0.9))


def test_scores_that_leave_0_to_1_are_logits() -> None:
    assert check_values(meaning_of("logits"), ramp(-0.2, 0.9)) == replace(
        meaning_of("logits"), rank=4
    )


def test_scores_that_sum_up_to_one_are_no_logits() -> None:
    with pytest.raises(ArtifactError, match="sum up to 1 over the classes, as of a softmax"):
        check_values(meaning_of("logits", 3), shares(3))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.5), (0.2, 3.0)])
def test_probabilities_beyond_0_to_1_are_refused(activation: str, low: float, high: float) -> None:
    with pytest.raises(UnsupportedModelError, match="not 0 to 1"):
        check_values(meaning_of(activation, 2), ramp(low, high, 2), error=UnsupportedModelError)


def test_cubic_interpolation_may_overshoot() -> None:
    chain = Chain(1).then("Sigmoid")
    chain.then("Resize", "", chain.constant([1, 1, 2, 2]), mode="cubic")
    data, graph = chain.built()
    meaning = find_meaning(graph)

    outputs = run(data, [image * 30 for image in images()])

    assert min(output.min() for output in outputs) < -0.05
    assert check_values(meaning, outputs).activation == "sigmoid"
    with pytest.raises(ArtifactError, match="not 0 to 1"):
        check_values(replace(meaning, overshoots=False), outputs)


def test_a_softmax_sums_up_to_one_but_where_it_was_padded() -> None:
    (good,) = shares(3)
    padded = good.copy()
    padded[..., 0] = 0
    scaled = good * 0.5

    assert check_values(meaning_of("softmax", 3), [padded]).activation == "softmax"
    with pytest.raises(ArtifactError, match="do not sum up to 1"):
        check_values(meaning_of("softmax", 3), [scaled])


def test_log_probabilities_are_checked_by_their_exponentials() -> None:
    (good,) = shares(3)

    checked = check_values(meaning_of("log_softmax", 3), [np.log(good)])

    assert checked.activation == "log_softmax"
    with pytest.raises(ArtifactError, match="exponentials do not sum up to 1"):
        check_values(meaning_of("log_softmax", 3), [good])


@pytest.mark.parametrize("values", [ramp(0, 3), ramp(-2.0, -2.0), [-np.ones((1, 1, 2, 2))]])
def test_ids_are_whole_numbers_from_0(values: list[Any]) -> None:
    with pytest.raises(ArtifactError, match="not all whole numbers from 0"):
        check_values(meaning_of("ids", None), values)


def test_ids_beyond_the_classes_are_refused() -> None:
    ids = [np.arange(8, dtype=np.int64).reshape(1, 2, 4)]

    assert check_values(meaning_of("ids", 8), ids).class_axis is None
    with pytest.raises(ArtifactError, match="0 to 7, above 5 classes"):
        check_values(meaning_of("ids", 5), ids)


def test_ids_with_several_channels_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"\[1, 3, 4, 4\]; class ids are \[N, H, W\]"):
        check_values(meaning_of("ids", 5), [np.zeros((1, 3, 4, 4), np.int64)])


@pytest.mark.parametrize("activation", ["logits", "sigmoid"])
def test_values_that_are_the_same_everywhere_prove_nothing(activation: str) -> None:
    outputs = [np.full((1, 1, 4, 4), 0.5, np.float32), np.full((1, 1, 2, 4), np.nan, np.float32)]

    assert check_values(meaning_of(activation), outputs).activation == activation


def test_sizes_that_vary_show_which_axis_is_that_of_the_classes() -> None:
    open_axis = meaning_of("logits", None, class_axis=None)
    one, other = np.zeros((1, 8, 6, 5)), np.zeros((1, 10, 12, 5))

    checked = check_values(open_axis, [one, other])

    assert (checked.class_axis, checked.num_classes, checked.threshold) == (3, 5, None)
    with pytest.raises(ArtifactError, match="which axis is that of the classes is not known"):
        check_values(open_axis, [one])


def test_a_number_of_classes_that_the_graph_does_not_have_is_refused() -> None:
    with pytest.raises(ArtifactError, match="expected 3 classes on axis 1"):
        check_values(meaning_of("logits", 3), ramp(-1, 1, 4))


def test_other_ranks_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"is \[2, 5\]; expected scores"):
        check_values(meaning_of("logits"), [np.zeros((2, 5))])


def test_a_softmax_of_a_single_class_is_refused() -> None:
    with pytest.raises(ArtifactError, match="softmax over a single class is always 1"):
        check_values(meaning_of("softmax", None), ramp(0, 1))


def test_what_the_user_says_wins_over_the_graph() -> None:
    unknown = meaning_of("unknown", None, evidence="the operator Relu")

    asked = asked_meaning(unknown, activation="sigmoid", threshold=0.3)

    checked = check_values(asked, ramp(0, 1))
    assert (checked.activation, checked.threshold, checked.num_classes) == ("sigmoid", 0.3, 1)
    assert checked.evidence == "--activation sigmoid; in the graph the operator Relu"


def test_logits_that_the_user_asks_for_may_lie_between_0_and_1() -> None:
    asked = asked_meaning(meaning_of("unknown"), activation="logits")

    assert check_values(asked, ramp(0.1, 0.9)).activation == "logits"


def test_a_softmax_that_the_user_asks_for_must_be_one() -> None:
    asked = asked_meaning(meaning_of("logits", 3), activation="softmax")

    with pytest.raises(ArtifactError, match=r"softmax of 3 classes .* not 0 to 1"):
        check_values(asked, ramp(-3, 3, 3))
    with pytest.raises(ArtifactError, match="do not sum up to 1"):
        check_values(asked, ramp(0, 1, 3))


def test_ids_that_the_user_asks_for_have_no_threshold() -> None:
    asked = asked_meaning(meaning_of("unknown", None), activation="ids")

    assert (asked.kind, asked.threshold) == ("labels", None)
    with pytest.raises(ArtifactError, match=r"threshold 0\.4 was given .* holds ids"):
        asked_meaning(asked, threshold=0.4)


@pytest.mark.parametrize("activation", ["softmax", "logits", "sigmoid"])
def test_a_threshold_of_several_classes_is_refused(activation: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"for a single class\. Leave --threshold"):
        asked_meaning(meaning_of(activation, 3), threshold=0.4, error=UnsupportedModelError)


def test_a_threshold_is_refused_when_values_show_several_classes() -> None:
    asked = asked_meaning(meaning_of("logits", None), threshold=0.4)

    with pytest.raises(ArtifactError, match=r"threshold 0\.4 was given .* 3 classes"):
        check_values(asked, ramp(-1, 1, 3))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -2.0, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ArtifactError, match="expected a number between 0 and 1"):
        asked_meaning(meaning_of("logits"), threshold=threshold)


def test_an_activation_that_is_none_is_refused() -> None:
    with pytest.raises(ArtifactError, match="--activation relu is not known"):
        asked_meaning(meaning_of("logits"), activation="relu")


def test_auto_leaves_it_to_the_graph() -> None:
    assert asked_meaning(meaning_of("logits"), activation="auto") == meaning_of("logits")


@pytest.mark.parametrize(("activation", "limit"), [("logits", np.log(0.25)), ("sigmoid", 0.2)])
def test_a_threshold_is_turned_into_the_outputs_own_units(activation: str, limit: float) -> None:
    asked = asked_meaning(meaning_of(activation), threshold=0.2)

    assert asked.score_threshold == pytest.approx(limit)


def query_graph(
    classes: str, masks: str, dims: tuple[Any, ...], mask_dims: tuple[Any, ...]
) -> OnnxGraph:
    model = model_of(
        [
            helper.make_node("Identity", ["a"], [classes]),
            helper.make_node("Identity", ["b"], [masks]),
        ],
        inputs=[
            helper.make_tensor_value_info("a", FLOAT, dims),
            helper.make_tensor_value_info("b", FLOAT, mask_dims),
        ],
        outputs=[
            helper.make_tensor_value_info(masks, FLOAT, mask_dims),
            helper.make_tensor_value_info(classes, FLOAT, dims),
        ],
    )
    return scan_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("classes", "masks", "queries"),
    [
        ("pred_logits", "pred_masks", 100),
        ("pred_logits", "pred_masks", "q"),
        ("class_queries_logits", "masks_queries_logits", 200),
        ("o1", "o2", 100),
    ],
)
def test_a_query_network_is_recognised_and_refused_by_name(
    classes: str, masks: str, queries: Any
) -> None:
    graph = query_graph(classes, masks, ("n", queries, 20), ("n", queries, "h", "w"))

    found = find_queries(graph)

    assert found is not None
    assert (found.kind, found.output, found.class_output) == ("queries", masks, classes)
    assert found.num_classes == 19
    with pytest.raises(ArtifactError, match=f"masks '{masks}' of queries .* in '{classes}'"):
        check_values(found, [])
    with pytest.raises(ArtifactError, match="it has no --activation"):
        asked_meaning(found, activation="logits")


@pytest.mark.parametrize(
    ("dims", "mask_dims"),
    [
        (("n", 100, 20), ("n", 21, "h", "w")),
        (("n", "q", 20), ("n", "q", "h", "w")),
        (("n", 3, "h", "w"), ("n", 3, "h", "w")),
    ],
)
def test_other_pairs_of_outputs_are_no_query_network(dims: Any, mask_dims: Any) -> None:
    assert find_queries(query_graph("o1", "o2", dims, mask_dims)) is None


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_activated_once(classes: int) -> None:
    logits = np.random.default_rng(2).normal(size=(classes, 4, 5)).astype(np.float32) * 4
    if classes == 1:
        expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
        activated: dict[str, Any] = {"logits": logits, "sigmoid": expected}
    else:
        expected = np.exp(logits.astype(np.float64))
        expected /= expected.sum(0)
        activated = {"logits": logits, "softmax": expected, "log_softmax": np.log(expected)}

    for activation, given in activated.items():
        found = probabilities(given, meaning_of(activation, classes))
        assert found.dtype == np.float32
        # float32, through an exponential
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        assert not np.shares_memory(found, given)


def test_probabilities_of_large_scores_are_finite() -> None:
    scores = np.array([1e30, -1e30], np.float32).reshape(1, 1, 2)

    np.testing.assert_array_equal(probabilities(scores, meaning_of("logits")).ravel(), [1, 0])


@pytest.mark.parametrize("activation", ["ids", "unknown"])
def test_labels_have_no_probabilities(activation: str) -> None:
    with pytest.raises(ValueError, match=f"{activation} have no probabilities"):
        probabilities(np.zeros((1, 2, 2), np.float32), meaning_of(activation))
