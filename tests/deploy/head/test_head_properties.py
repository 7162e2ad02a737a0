"""The head gives the labels of interpolation and argmax, whatever the scores and the sizes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_deploy.head import upsample_argmax, upsample_confidence
from fcn_deploy.head.geometry import make_axis
from fcn_deploy.names import Array
from tests.deploy.interpolation import interpolate

KINDS = (
    "noise",
    "smooth",
    "constant",
    "ties",
    "one ulp",
    "huge range",
    "subnormal",
    "checkerboard",
    "fp16",
    "bf16",
)


def make_scores(kind: str, shape: tuple[int, int, int], seed: int) -> Array:
    """Make float32 scores [C, h, w] of a kind that could fool a shortcut."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape)
    classes, height, width = shape
    y, x = np.mgrid[:height, :width]
    match kind:
        case "smooth":
            slopes = rng.standard_normal((2, classes, 1, 1))
            made = slopes[0] * y + slopes[1] * x + noise[:, :1, :1]
        case "constant":
            made = np.broadcast_to(noise[:, :1, :1], shape)
        case "ties":
            made = rng.integers(0, 3, shape).astype(np.float64)
        case "one ulp":
            made = 1 + rng.integers(0, 3, shape) * 2.0**-23
        case "huge range":
            made = noise * 10.0 ** rng.integers(-30, 31, shape)
        case "subnormal":
            made = rng.integers(-20, 21, shape) * 2.0**-149
        case "checkerboard":
            made = np.stack([(y + x + c) % 2 * 100 + 0.001 * c for c in range(classes)])
        case "fp16":
            made = noise.astype(np.float16)
        case "bf16":
            made = torch.from_numpy(noise).bfloat16().float().numpy()
        case _:
            made = noise
    return np.ascontiguousarray(made, np.float32)


def torch_labels(scores: Array, size: tuple[int, int], align_corners: bool) -> Array:
    batch = torch.from_numpy(scores)[None]
    resized = torch.nn.functional.interpolate(
        batch, size=size, mode="bilinear", align_corners=align_corners
    )
    labels: Array = resized[0].argmax(0).numpy()
    return labels


@cache
def onnx_session(align_corners: bool) -> onnxruntime.InferenceSession:
    mode = "align_corners" if align_corners else "half_pixel"
    nodes = [
        onnx.helper.make_node(
            "Resize",
            ["scores", "", "", "sizes"],
            ["resized"],
            mode="linear",
            coordinate_transformation_mode=mode,
        ),
        onnx.helper.make_node("ArgMax", ["resized"], ["labels"], axis=1, keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "resize_argmax",
        [
            onnx.helper.make_tensor_value_info(
                "scores", onnx.TensorProto.FLOAT, [1, None, None, None]
            ),
            onnx.helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [4]),
        ],
        [onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.INT64, None)],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def sizes(largest: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, largest), st.integers(1, largest))


@settings(max_examples=250)
@example("huge range", 21, (7, 9), (70, 40), False, 0)  # bands of more rows than a group
@example("noise", 300, (3, 4), (9, 40), False, 0)  # uint16, many words of contenders
@example("ties", 256, (3, 3), (24, 24), True, 0)
@example("ties", 257, (3, 3), (24, 24), True, 0)
@given(
    st.sampled_from(KINDS),
    st.sampled_from((2, 3, 21, 32, 33, 150)),
    sizes(9),
    sizes(40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_labels_are_the_best_classes_within_rounding(
    kind: str,
    classes: int,
    samples: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    scores = make_scores(kind, (classes, *samples), seed)
    before = scores.copy()

    labels = upsample_argmax(scores, size, align_corners=align_corners)

    expected = interpolate(scores, size, align_corners=align_corners)
    assert labels.shape == size
    assert labels.dtype == (np.uint8 if classes <= 256 else np.uint16)
    assert expected.allows(labels)
    assert expected.allows(torch_labels(scores, size, align_corners))  # the tolerance fits torch
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_small_size_to_every_other_gives_the_best_classes(align_corners: bool) -> None:
    wrong = []
    for height, width in np.ndindex(6, 6):
        scores = make_scores("noise", (5, height + 1, width + 1), seed=height * 6 + width)
        for step in range(20):
            size = (step + 1, (7 * step + height) % 20 + 1)
            labels = upsample_argmax(scores, size, align_corners=align_corners)
            expected = interpolate(scores, size, align_corners=align_corners)
            if not expected.allows(labels):
                wrong.append((scores.shape, size))

    assert wrong == []


@settings(max_examples=100)
@given(
    st.sampled_from((2, 5, 40)),
    sizes(7),
    st.tuples(st.sampled_from((1, 2, 4, 8, 16)), st.sampled_from((1, 2, 4, 8, 16))),
    st.integers(0, 2**32 - 1),
)
def test_ties_go_to_the_lowest_class_at_every_pixel(
    classes: int, samples: tuple[int, int], ratio: tuple[int, int], seed: int
) -> None:
    # small integers and weights of few bits: float32 is exact, and so must be the labels
    scores = make_scores("ties", (classes, *samples), seed)
    size = (samples[0] * ratio[0], samples[1] * ratio[1])

    labels = upsample_argmax(scores, size)

    assert np.array_equal(labels, interpolate(scores, size).labels)


def test_mean_of_winners_that_rounds_up_excludes_no_winner() -> None:
    # a quarter of 6 units is rounded to 2, that of 5 to 1: three of 6 and one of 5 make 7
    smallest = np.float32(2.0**-149)
    winners = np.array([[[5, 6], [5, 5]], [[6, 6], [6, 6]]]) * smallest
    scores = np.concatenate([np.full((3, 2, 2), -1), winners]).astype(np.float32)

    labels = upsample_argmax(scores, (16, 16))

    assert set(np.unique(labels)) == {3, 4}


@settings(max_examples=60)
@given(st.sampled_from(KINDS), sizes(8), sizes(40), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_class_never_loses_to_its_own_copy(
    kind: str,
    samples: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    scores = make_scores(kind, (4, *samples), seed)
    doubled = np.concatenate([scores, scores])

    labels = upsample_argmax(doubled, size, align_corners=align_corners)

    assert labels.max() < 4


@settings(max_examples=150)
@given(
    st.sampled_from(("noise", "smooth", "fp16", "bf16")),
    sizes(9),
    sizes(40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_labels_are_those_of_onnx_resize_and_argmax(
    kind: str,
    samples: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    scores = make_scores(kind, (21, *samples), seed)
    feeds = {"scores": scores[None], "sizes": np.array([1, 21, *size], np.int64)}
    (onnx_labels,) = onnx_session(align_corners).run(None, feeds)

    labels = upsample_argmax(scores, size, align_corners=align_corners)

    # ONNX Runtime rounds positions otherwise: by up to an ulp of 9 samples at each of two axes
    resized = interpolate(scores, size, align_corners=align_corners)
    positions = 2 * 2.0**-20 * 2 * np.abs(scores).max()
    different = labels != onnx_labels[0]
    assert (resized.shortfall(onnx_labels[0])[different] <= positions).all()
    assert (resized.shortfall(labels)[different] <= positions).all()


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 2000), st.booleans())
@example(240, 1913, False)
@example(97, 1001, False)
def test_weights_are_those_of_pytorch_to_the_bit(
    samples: int, size: int, align_corners: bool
) -> None:
    each = torch.eye(samples)[None, :, None, :]  # one channel a sample
    weights = torch.nn.functional.interpolate(
        each, size=(1, size), mode="bilinear", align_corners=align_corners
    )[0, :, 0].numpy()

    axis = make_axis(samples, size, align_corners=align_corners)

    inner = axis.cells < samples - 1
    behind = weights[np.minimum(axis.cells + 1, samples - 1), np.arange(size)]
    assert np.array_equal(axis.far[:size][inner], behind[inner])
    assert np.array_equal(axis.near[:size][inner], weights[axis.cells, np.arange(size)][inner])


@settings(max_examples=100)
@given(
    st.sampled_from(("noise", "smooth", "constant", "ties", "checkerboard")),
    st.sampled_from((1, 2, 21)),
    sizes(9),
    sizes(40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_confidence_is_the_softmax_of_the_best_class(
    kind: str,
    classes: int,
    samples: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    scores = make_scores(kind, (classes, *samples), seed)

    labels, confidence = upsample_confidence(scores, size, align_corners=align_corners)

    resized = interpolate(scores, size, align_corners=align_corners).scores
    if classes == 1:
        resized = np.concatenate([np.zeros_like(resized), resized])
    exponentials = np.exp(resized - resized.max(0))
    # 1e-6 for the exponential, and float32's rounding of scores of up to 100 on two classes
    tolerance = 1e-6 + 4 * 2.0**-24 * np.abs(scores).max()
    assert np.array_equal(labels, upsample_argmax(scores, size, align_corners=align_corners))
    assert confidence.dtype == np.float32
    assert np.abs(confidence - 1 / exponentials.sum(0)).max() <= tolerance
