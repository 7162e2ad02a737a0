"""What an output means is found in the graph, and agrees with what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.graph.meaning import FoundMeaning, check_values, find_meaning, labels_of
from tests.deploy.output_graphs import FLOAT, FLOAT16, Chain, images, run

N1HW, NHW, NHW1 = ("n", 1, "h", "w"), ("n", "h", "w"), ("n", "h", "w", 1)
INT64, UINT8, BOOL = TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL
End = Callable[[Chain], Chain]

TO_NHWC: dict[str, Any] = {"perm": [0, 2, 3, 1]}
TO_NCHW: dict[str, Any] = {"perm": [0, 3, 1, 2]}


def _doubled(chain: Chain, **attributes: Any) -> Chain:
    return chain.then("Resize", "", chain.constant([1, 1, 1, 1]), mode="linear", **attributes)


def _member(chain: Chain, op: str, *, factor: float = 1.0) -> str:
    """Add another activation of `s`, beside the last tensor; the same labels follow from it."""
    name = f"m{len(chain.nodes)}"
    if op == "Neg":
        chain.nodes.append(helper.make_node(op, ["s"], [name]))
        return name
    chain.nodes.append(helper.make_node("Mul", ["s", chain.constant(factor)], [name + "s"]))
    chain.nodes.append(helper.make_node(op, [name + "s"], [name]))
    return name


def _flipped(chain: Chain) -> Chain:
    chain.then("Neg").then("Sigmoid")
    return chain.then("Sub", chain.constant(1), chain.tensor, first=False)


def _tanh(chain: Chain) -> Chain:
    # the half of a tanh of half the score is the sigmoid less one half
    chain.then("Mul", chain.constant(0.5)).then("Tanh").then("Mul", chain.constant(0.5))
    return chain.then("Add", chain.constant(0.5))


def _stacked(chain: Chain, op: str) -> Chain:
    chain.then(op).then("Unsqueeze", chain.integers([0]))
    first, chain.tensor = chain.tensor, _member(chain, op, factor=0.5)
    chain.then("Unsqueeze", chain.integers([0]))
    chain.then("Concat", first, axis=0)
    return chain.then("ReduceMean", axes=[0], keepdims=0)


def _quantised(chain: Chain) -> Chain:
    scale, zero = chain.constant(1 / 255), chain.constant(0, np.uint8)
    return chain.then("QuantizeLinear", scale, zero).then("DequantizeLinear", scale, zero)


def _log_odds(chain: Chain) -> Chain:
    background, foreground = chain.integers([0]), chain.integers([1])
    whole = chain.tensor
    chain.then("Gather", background, axis=1)
    other, chain.tensor = chain.tensor, whole
    chain.then("Gather", foreground, axis=1)
    return chain.then("Sub", other)


def _split(chain: Chain) -> Chain:
    chain.nodes.append(helper.make_node("Split", [chain.tensor], ["bg", "fg"], axis=1))
    chain.tensor = "fg"
    return chain


def _background_beside(chain: Chain) -> Chain:
    chain.then("Sigmoid")
    foreground = chain.tensor
    chain.then("Sub", chain.constant(1), foreground, first=False)
    return chain.then("Concat", foreground, axis=1)


def _top(chain: Chain) -> Chain:
    chain.nodes.append(
        helper.make_node("TopK", [chain.tensor, chain.integers([1])], ["best", "best_id"], axis=1)
    )
    chain.tensor = "best_id"
    return chain


ONE_CLASS: dict[str, tuple[str, End]] = {
    "logits": ("logits", lambda c: c),
    "bias behind a quantised kernel": ("logits", lambda c: c.then("Add", c.constant([[[0.0]]]))),
    "logits, kept within safe limits": (
        "logits",
        lambda c: c.then("Clip", c.constant(-30), c.constant(30)),
    ),
    "logits of other temperature": ("logits", lambda c: c.then("Div", c.constant(2.5))),
    "sum of two heads": ("logits", lambda c: c.then("Add", "s")),
    "sigmoid": ("sigmoid", lambda c: c.then("Sigmoid")),
    "sigmoid and Identity": ("sigmoid", lambda c: c.then("Sigmoid").then("Identity")),
    "sigmoid and Dropout": ("sigmoid", lambda c: c.then("Sigmoid").then("Dropout")),
    "sigmoid, enlarged": ("sigmoid", lambda c: _doubled(c.then("Sigmoid"))),
    "sigmoid and a Clip to 0..1": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Clip", c.constant(0), c.constant(1)),
    ),
    "sigmoid and a Clip inside": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Clip", c.constant(1e-6), c.constant(1 - 1e-6)),
    ),
    "sigmoid times one": ("sigmoid", lambda c: c.then("Sigmoid").then("Mul", c.constant(1))),
    "sigmoid and epsilon": ("sigmoid", lambda c: c.then("Sigmoid").then("Add", c.constant(1e-7))),
    "one less the sigmoid of the negative": ("sigmoid", _flipped),
    "half a tanh and a half": ("sigmoid", _tanh),
    "HardSigmoid": ("sigmoid", lambda c: c.then("HardSigmoid", alpha=1 / 6, beta=0.5)),
    "HardSigmoid in its parts": (
        "sigmoid",
        lambda c: (
            c.then("Add", c.constant(3))
            .then("Clip", c.constant(0), c.constant(6))
            .then("Div", c.constant(6))
        ),
    ),
    "sigmoid in its parts": (
        "sigmoid",
        lambda c: c.then("Neg").then("Exp").then("Add", c.constant(1)).then("Reciprocal"),
    ),
    "mean of two sigmoids": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Add", _member(c, "Sigmoid")).then("Mul", c.constant(0.5)),
    ),
    "Mean of two sigmoids": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Mean", _member(c, "Sigmoid")),
    ),
    "stacked sigmoids": ("sigmoid", lambda c: _stacked(c, "Sigmoid")),
    "sigmoid, padded and cut": (
        "sigmoid",
        lambda c: (
            c.then("Sigmoid")
            .then("Pad", c.integers([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
            .then("Slice", c.integers([1, 1]), c.integers([-1, -1]), c.integers([2, 3]))
        ),
    ),
    "sigmoid as float16 and back": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Cast", to=FLOAT16).then("Cast", to=FLOAT),
    ),
    "quantised sigmoid": ("sigmoid", lambda c: _quantised(c.then("Sigmoid"))),
    "softplus-free max with zero": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("Max", c.constant(0)),
    ),
    "averaged by a fixed kernel of one": (
        "sigmoid",
        lambda c: c.then("Sigmoid").then("AveragePool", kernel_shape=[1, 1]),
    ),
}

TWO_CLASSES: dict[str, tuple[str, End]] = {
    "one of two by Slice": (
        "sigmoid",
        lambda c: c.then("Softmax", axis=1).then(
            "Slice", c.integers([1]), c.integers([2]), c.integers([1])
        ),
    ),
    "one of two by Gather": (
        "sigmoid",
        lambda c: c.then("Softmax", axis=1).then("Gather", c.integers([1]), axis=1),
    ),
    "one of two by Split": ("sigmoid", lambda c: _split(c.then("Softmax", axis=1))),
    "log odds": ("logits", _log_odds),
}

MANY: dict[str, tuple[str, int, End]] = {
    "logits": ("logits", 1, lambda c: c),
    "several sigmoids": ("sigmoid", 1, lambda c: c.then("Sigmoid")),
    "softmax": ("softmax", 1, lambda c: c.then("Softmax", axis=1)),
    "softmax by an axis from the end": ("softmax", 1, lambda c: c.then("Softmax", axis=-3)),
    "softmax, enlarged": ("softmax", 1, lambda c: _doubled(c.then("Softmax", axis=1))),
    "softmax and epsilon": (
        "softmax",
        1,
        lambda c: c.then("Softmax", axis=1).then("Add", c.constant(1e-7)),
    ),
    "exponential of LogSoftmax": ("softmax", 1, lambda c: c.then("LogSoftmax", axis=1).then("Exp")),
    "mean of two softmaxes": (
        "softmax",
        1,
        lambda c: c.then("Softmax", axis=1).then("Mean", c.tensor),
    ),
    "LogSoftmax": ("log_softmax", 1, lambda c: c.then("LogSoftmax", axis=1)),
    "logarithm of Softmax": ("log_softmax", 1, lambda c: c.then("Softmax", axis=1).then("Log")),
    "logits, last": ("logits", 3, lambda c: c.then("Transpose", **TO_NHWC)),
    "softmax, last": (
        "softmax",
        3,
        lambda c: c.then("Transpose", **TO_NHWC).then("Softmax", axis=-1),
    ),
    "softmax, last by Transpose": (
        "softmax",
        3,
        lambda c: c.then("Softmax", axis=1).then("Transpose", **TO_NHWC),
    ),
    "there and back": (
        "softmax",
        1,
        lambda c: (
            c.then("Transpose", **TO_NHWC).then("Softmax", axis=3).then("Transpose", **TO_NCHW)
        ),
    ),
    "prior added to logits": (
        "logits",
        1,
        lambda c: c.then("Add", c.constant(np.zeros((1, 4, 1, 1)))),
    ),
}

IDS: dict[str, tuple[tuple[int | str, ...], int, int | None, End]] = {
    "ArgMax": (NHW, INT64, None, lambda c: c.then("ArgMax", axis=1, keepdims=0)),
    "ArgMax that keeps the axis": (N1HW, INT64, 1, lambda c: c.then("ArgMax", axis=1, keepdims=1)),
    "ArgMax of a softmax": (
        N1HW,
        INT64,
        1,
        lambda c: c.then("Softmax", axis=1).then("ArgMax", axis=1),
    ),
    "ArgMax of the last axis": (
        NHW1,
        INT64,
        3,
        lambda c: c.then("Transpose", **TO_NHWC).then("ArgMax", axis=-1),
    ),
    "ids as float": (
        NHW,
        FLOAT,
        None,
        lambda c: c.then("ArgMax", axis=1, keepdims=0).then("Cast", to=FLOAT),
    ),
    "ids as float with an axis": (
        N1HW,
        FLOAT,
        1,
        lambda c: c.then("ArgMax", axis=1).then("Cast", to=FLOAT),
    ),
    "ids, squeezed": (
        NHW,
        INT64,
        None,
        lambda c: c.then("ArgMax", axis=1).then("Squeeze", c.integers([1])),
    ),
    "ids, unsqueezed": (
        N1HW,
        INT64,
        1,
        lambda c: c.then("ArgMax", axis=1, keepdims=0).then("Unsqueeze", c.integers([1])),
    ),
    "ids, enlarged by nearest": (
        N1HW,
        FLOAT,
        1,
        lambda c: (
            c.then("ArgMax", axis=1)
            .then("Cast", to=FLOAT)
            .then("Resize", "", c.constant([1, 1, 1, 1]), mode="nearest")
        ),
    ),
    "TopK": (N1HW, INT64, 1, _top),
}


def _meaning(chain: Chain, dims: Any = None, dtype: int = FLOAT) -> tuple[FoundMeaning, list[Any]]:
    data, graph = chain.built(dims, dtype=dtype)
    return find_meaning(graph), run(data, images())


@pytest.mark.parametrize("kind", [*ONE_CLASS])
def test_a_single_class_is_there_where_its_score_says_so(kind: str) -> None:
    activation, end = ONE_CLASS[kind]
    chain = end(Chain(1))

    meaning, outputs = _meaning(chain)

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == (activation, 1, 1)
    assert meaning.threshold == 0.5
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


@pytest.mark.parametrize("kind", [*TWO_CLASSES])
def test_one_channel_of_two_classes_is_a_probability(kind: str) -> None:
    activation, end = TWO_CLASSES[kind]
    chain = end(Chain(2))

    meaning, outputs = _meaning(chain, ("n", 1, "h", "w"))

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == (activation, 1, 1)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


@pytest.mark.parametrize("written", [True, False], ids=["classes written", "all symbolic"])
@pytest.mark.parametrize("kind", [*MANY])
def test_the_best_of_several_classes_is_found_on_their_axis(kind: str, written: bool) -> None:
    activation, axis, end = MANY[kind]
    chain = end(Chain(4))
    dims: list[int | str] = ["a", "b", "c", "d"]
    if written:
        dims[axis] = 4

    meaning, outputs = _meaning(chain, dims)

    assert (meaning.activation, meaning.class_axis) == (activation, axis)
    assert (meaning.num_classes, meaning.threshold) == (4, None)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


@pytest.mark.parametrize("kind", [*IDS])
def test_class_ids_are_the_labels(kind: str) -> None:
    dims, dtype, axis, end = IDS[kind]
    chain = end(Chain(4))

    meaning, outputs = _meaning(chain, dims, dtype)

    assert (meaning.kind, meaning.activation, meaning.class_axis) == ("labels", "ids", axis)
    assert (meaning.num_classes, meaning.threshold) == (4, None)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


@pytest.mark.parametrize(
    ("op", "to"), [("Greater", FLOAT), ("GreaterOrEqual", UINT8), ("Greater", INT64)]
)
def test_a_mask_made_by_comparison_holds_ids_of_two_classes(op: str, to: int) -> None:
    chain = Chain(1)
    chain.then("Sigmoid").then(op, chain.constant(0.5)).then("Cast", to=to)

    meaning, outputs = _meaning(chain, N1HW, to)

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == ("ids", 1, 2)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


def test_rounded_probabilities_and_chosen_constants_are_masks() -> None:
    rounded = Chain(1).then("Sigmoid").then("Round")
    chosen = Chain(1)
    chosen.then("Greater", chosen.constant(0))
    chosen.then("Where", chosen.constant(1), chosen.constant(0))

    for chain in (rounded, chosen):
        meaning, outputs = _meaning(chain, N1HW)
        assert (meaning.activation, meaning.num_classes) == ("ids", 2)
        _assert_same_labels(check_values(meaning, outputs), outputs, chain)


def test_a_squeezed_sigmoid_has_one_class_and_no_axis_of_it() -> None:
    chain = Chain(1)
    chain.then("Sigmoid").then("Squeeze", chain.integers([1]))

    meaning, outputs = _meaning(chain, NHW)

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == ("sigmoid", None, 1)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


def test_background_beside_foreground_is_the_best_of_two() -> None:
    chain = _background_beside(Chain(1))

    meaning, outputs = _meaning(chain, ("n", 2, "h", "w"))

    assert (meaning.activation, meaning.num_classes, meaning.threshold) == ("sigmoid", 2, None)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


def test_a_table_of_ids_gives_other_ids() -> None:
    chain = Chain(3).then("ArgMax", axis=1, keepdims=0)
    chain.then("Gather", chain.integers([7, 1, 4]), chain.tensor, first=False)

    meaning, outputs = _meaning(chain, NHW, INT64)

    assert (meaning.activation, meaning.num_classes) == ("ids", 8)
    assert set(np.unique(outputs[0])) == {1, 4, 7}
    assert check_values(meaning, outputs).activation == "ids"


UNKNOWN: dict[str, tuple[str, int, End]] = {
    "Relu": ("the operator Relu", 1, lambda c: c.then("Relu")),
    "Sqrt": ("the operator Sqrt", 1, lambda c: c.then("Sqrt")),
    "Abs then Resize": ("the operator Abs", 1, lambda c: _doubled(c.then("Abs"))),
    "tanh alone": (r"Tanh, in -1\.\.1", 1, lambda c: c.then("Tanh")),
    "bytes": (
        r"Sigmoid, then Mul, in 0\.\.255",
        1,
        lambda c: c.then("Sigmoid").then("Mul", c.constant(255)),
    ),
    "scores cut to 0..1": (
        r"scores \(Conv\), cut by Clip to 0\.\.1",
        1,
        lambda c: c.then("Clip", c.constant(0), c.constant(1)),
    ),
    "probabilities cut above a half": (
        r"Sigmoid, in 0\.\.1, cut by Clip to 0\.6\.\.1",
        1,
        lambda c: c.then("Sigmoid").then("Clip", c.constant(0.6), c.constant(1)),
    ),
    "sigmoid twice": ("a Sigmoid of Sigmoid", 1, lambda c: c.then("Sigmoid").then("Sigmoid")),
    "gate": ("a Mul of two tensors", 1, lambda c: c.then("Sigmoid").then("Mul", "s")),
    "softmax over the width": (
        "a Softmax over axis 3, which is not that of the classes",
        3,
        lambda c: c.then("Softmax", axis=3),
    ),
    "softmax of one": ("a Softmax over a single class", 1, lambda c: c.then("Softmax", axis=1)),
    "one less the softmax": (
        "whose sum over the classes is not 1",
        3,
        lambda c: c.then("Softmax", axis=1).then("Sub", c.constant(1), "t1", first=False),
    ),
    "negative log-probabilities": (
        "multiplied by -1",
        3,
        lambda c: c.then("LogSoftmax", axis=1).then("Neg"),
    ),
    "chosen where": (
        "a Where",
        1,
        lambda c: c.then("Greater", c.constant(0)).then("Where", c.constant(255), "s"),
    ),
    "one of two scores": (
        "one of several scores of Conv",
        2,
        lambda c: c.then("Gather", c.integers([1]), axis=1),
    ),
    "one of three probabilities": (
        "1 of 3 classes of Softmax",
        3,
        lambda c: c.then("Softmax", axis=1).then("Gather", c.integers([1]), axis=1),
    ),
    "height and width swapped": (
        "whose axes are ncwh",
        3,
        lambda c: c.then("Transpose", perm=[0, 1, 3, 2]),
    ),
    "ids times a constant": (
        r"class ids \(ArgMax\), multiplied by 20",
        3,
        lambda c: c.then("ArgMax", axis=1).then("Cast", to=FLOAT).then("Mul", c.constant(20)),
    ),
    "ids, interpolated": (
        "class ids that are enlarged by linear interpolation",
        3,
        lambda c: _doubled(c.then("ArgMax", axis=1).then("Cast", to=FLOAT)),
    ),
    "best score": ("the operator ReduceMax", 3, lambda c: c.then("ReduceMax", axes=[1])),
    "ArgMax over the height": (
        "ArgMax over axis 2",
        3,
        lambda c: c.then("ArgMax", axis=2).then("Cast", to=FLOAT),
    ),
    "mask for each class": (
        "for each of 3 classes",
        3,
        lambda c: c.then("Greater", c.constant(0)).then("Cast", to=FLOAT),
    ),
}


@pytest.mark.parametrize("kind", [*UNKNOWN])
def test_what_is_not_known_is_named_and_never_guessed(kind: str) -> None:
    evidence, classes, end = UNKNOWN[kind]
    _, graph = end(Chain(classes)).built(("n", "c", "h", "w"))

    meaning = find_meaning(graph)

    assert meaning.activation == "unknown"
    with pytest.raises(Exception, match=evidence) as caught:
        check_values(meaning, [np.zeros((1, 1, 4, 4), np.float32)])
    assert "--activation logits|sigmoid|softmax|ids" in str(caught.value)
    assert "--threshold X" in str(caught.value)


def test_softmax_before_opset_13_took_all_axes_from_its_own_on() -> None:
    first = Chain(3, opset=11).then("Softmax", axis=1)
    last = Chain(3, opset=11).then("Transpose", **TO_NHWC).then("Softmax", axis=3)

    assert find_meaning(first.built()[1]).activation == "unknown"
    assert find_meaning(last.built(("n", "h", "w", 3))[1]).activation == "softmax"


def test_a_long_chain_ends_the_search() -> None:
    chain = Chain(1)
    for _ in range(300):
        chain.then("Identity")

    meaning = find_meaning(chain.built()[1])

    assert (meaning.activation, meaning.evidence) == (
        "unknown",
        "more than 120 operators in a row",
    )


FREE = ("n", 3, "h", "w")


@pytest.mark.parametrize(
    ("image_dims", "dims", "axis"),
    [
        (FREE, ("n", 5, "h2", "w2"), 1),
        (FREE, ("n", "h2", "w2", 5), 3),
        (FREE, ("a", "b", "c", "d"), None),
        ((1, 3, 32, 48), (1, 21, 16, 24), 1),
        ((1, 32, 48, 3), (1, 16, 24, 21), 3),
        ((1, 3, 32, 32), (1, 32, 32, 32), None),
        ((1, 3, 3, 3), (1, 3, 3, 3), None),
        (FREE, (1, 3, 3, 3), None),
    ],
)
def test_written_sizes_tell_the_classes_where_no_convolution_does(
    image_dims: Any, dims: Any, axis: int | None
) -> None:
    chain = Chain(5, image_dims=image_dims)
    chain.then("Einsum", chain.constant(np.eye(5)), equation="nchw,kc->nkhw")

    meaning = find_meaning(chain.built(dims)[1])

    assert (meaning.activation, meaning.class_axis) == ("logits", axis)


def test_a_softmax_over_another_axis_than_the_written_classes_is_unknown() -> None:
    chain = Chain(5)
    chain.then("Einsum", chain.constant(np.eye(5)), equation="nchw,kc->nkhw")
    chain.then("Softmax", axis=3)

    meaning = find_meaning(chain.built(("n", 5, "h2", "w2"))[1])

    assert meaning.activation == "unknown"
    assert "over axis 3, where the written sizes have the classes on axis 1" in meaning.evidence


@pytest.mark.parametrize(("scales", "axis"), [([1, 1, 2, 2], 1), ([1, 2, 2, 1], 3)])
def test_what_an_enlargement_leaves_as_it_is_are_the_classes(
    scales: list[float], axis: int
) -> None:
    chain = Chain(5)
    chain.then("Einsum", chain.constant(np.eye(5)), equation="nchw,kc->nkhw")
    chain.then("Resize", "", chain.constant(scales), mode="linear")

    meaning = find_meaning(chain.built(("a", "b", "c", "d"))[1])

    assert meaning.class_axis == axis


def test_a_linear_layer_over_the_last_axis_gives_its_classes_there() -> None:
    chain = Chain(5).then("Relu").then("Transpose", **TO_NHWC)
    chain.then("MatMul", chain.constant(np.ones((5, 7)))).then("Sigmoid")

    meaning = find_meaning(chain.built(("a", "b", "c", "d"))[1])

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == ("sigmoid", 3, 7)


@pytest.mark.parametrize(("weight", "activation"), [(1 / 9, "sigmoid"), (0.5, "logits")])
def test_a_kernel_that_averages_keeps_probabilities_and_others_make_scores(
    weight: float, activation: str
) -> None:
    chain = Chain(1).then("Sigmoid")
    chain.then("Conv", chain.constant(np.full((1, 1, 3, 3), weight)), pads=[1, 1, 1, 1])

    assert find_meaning(chain.built()[1]).activation == activation


def test_a_bilinear_transposed_convolution_keeps_probabilities() -> None:
    taps = np.array([0.25, 0.75, 0.75, 0.25])
    chain = Chain(1).then("Sigmoid")
    kernel = chain.constant(np.outer(taps, taps)[None, None])
    chain.then("ConvTranspose", kernel, strides=[2, 2], pads=[1, 1, 1, 1])

    data, graph = chain.built()

    assert check_values(find_meaning(graph), run(data, images())).activation == "sigmoid"


_ODD_OPERATORS = (
    *("Add", "ArgMax", "Clip", "Concat", "Conv", "DepthToSpace", "Einsum", "Flatten", "Gather"),
    *("Gemm", "Identity", "MatMul", "Max", "Mean", "Pad", "ReduceMean", "Reshape", "Resize"),
    *("Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze", "Where"),
)
_ODD_ATTRIBUTES = {
    **dict.fromkeys(("axis", "keepdims", "blocksize", "group"), st.integers(-9, 9)),
    **dict.fromkeys(
        ("perm", "axes", "split", "pads"), st.lists(st.integers(-5, 5), min_size=1, max_size=6)
    ),
    "equation": st.sampled_from(["", "->", "abc,cd->abd", "i->"]),
}


@settings(max_examples=150)
@given(st.data())
def test_graphs_that_do_not_fit_together_are_unknown_or_something_but_no_crash(
    data: st.DataObject,
) -> None:
    chain = Chain(2)
    constants = [
        *(chain.integers(value) for value in ([], 0, [1], [-7, 3], [0, 0, 0, 0, 0, 0, 0, 0])),
        *(chain.constant(value) for value in ([], 0.5, [1, 2, 1, 1])),
    ]
    for _ in range(data.draw(st.integers(1, 4))):
        names = st.sampled_from([*constants, chain.tensor, "s", ""])
        keys = data.draw(st.lists(st.sampled_from([*_ODD_ATTRIBUTES]), max_size=2, unique=True))
        attributes: dict[str, Any] = {key: data.draw(_ODD_ATTRIBUTES[key]) for key in keys}
        inputs = data.draw(st.lists(names, max_size=4))
        chain.then(data.draw(st.sampled_from(_ODD_OPERATORS)), *inputs, **attributes)
    try:
        graph = chain.scanned()
    except FcnDeployError:
        return

    meaning = find_meaning(graph)

    assert meaning.evidence
    assert meaning.class_axis in (None, 1, 3)


_PASSES: dict[str, End] = {
    "identity": lambda c: c.then("Identity"),
    "float16": lambda c: c.then("Cast", to=FLOAT16).then("Cast", to=FLOAT),
    "resize": _doubled,
    "times one": lambda c: c.then("Mul", c.constant(1)),
    "plus epsilon": lambda c: c.then("Add", c.constant(1e-7)),
    "divided by one": lambda c: c.then("Div", c.constant(1)),
    "there and back": lambda c: c.then("Transpose", **TO_NHWC).then("Transpose", **TO_NCHW),
    "five axes": lambda c: c.then("Unsqueeze", c.integers([0])).then("Squeeze", c.integers([0])),
    "same shape": lambda c: c.then("Reshape", c.integers([0, 0, 0, -1])).then("Identity"),
    "pool": lambda c: c.then("AveragePool", kernel_shape=[1, 1]),
    "pad and cut": lambda c: c.then("Pad", c.integers([0, 0, 1, 2, 0, 0, 1, 2]), mode="edge").then(
        "Slice", c.integers([1, 2]), c.integers([-1, -2]), c.integers([-2, -1])
    ),
    "mean with itself": lambda c: c.then("Mean", c.tensor),
}
_STARTS: dict[str, tuple[int, End]] = {
    "logits": (3, lambda c: c),
    "sigmoid": (1, lambda c: c.then("Sigmoid")),
    "softmax": (3, lambda c: c.then("Softmax", axis=1)),
}


@settings(max_examples=40)
@given(st.sampled_from([*_STARTS]), st.lists(st.sampled_from([*_PASSES]), max_size=6))
def test_any_chain_of_operators_that_keep_the_meaning_keeps_it(
    start: str, passes: list[str]
) -> None:
    classes, activated = _STARTS[start]
    chain = activated(Chain(classes))
    for one in passes:
        chain = _PASSES[one](chain)

    meaning, outputs = _meaning(chain)

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == (start, 1, classes)
    _assert_same_labels(check_values(meaning, outputs), outputs, chain)


def _assert_same_labels(meaning: FoundMeaning, outputs: list[Any], chain: Chain) -> None:
    for image, output in zip(images(), outputs, strict=True):
        scores = chain.scores(image)
        expected = scores[:, 0] > 0 if chain.classes == 1 else scores.argmax(1)
        # float16 and the last places of float32 may turn pixels on the border
        assert (labels_of(output, meaning) == expected).mean() > 0.98
