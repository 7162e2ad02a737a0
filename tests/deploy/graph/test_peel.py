"""Tails are peeled where the runtime's head gives the graph's own labels, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcn_deploy.backends import backend_names
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.segmenter import Segmenter
from tests.deploy.peeling import GraphBuilder, compare, frame

Builder = GraphBuilder
UINT8, INT8, INT32, INT64 = (
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
)


@pytest.fixture(autouse=True)
def _without_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="fcn_deploy.opening.load")


def decide(data: bytes) -> PeeledTail | str:
    graph = scan_onnx(data)
    return peel_tail(graph, find_tail(graph))


def one(tail: Callable[[Builder], str], **options: object) -> bytes:
    builder = GraphBuilder(**options)  # type: ignore[arg-type]  # of the tables below
    return builder.build(tail(builder))


# what exporters write, by the form of their last nodes


def paddle(g: Builder) -> str:
    size = g.add("Cast", g.add("Cast", g.shape_of(g.image, 2, 4), to=INT32), to=INT64)
    full = g.upsample(sizes=g.sizes(size), coordinate_transformation_mode="half_pixel")
    return g.add("Cast", g.argmax(full), to=INT32)


def mmdeploy(g: Builder) -> str:
    shape = g.add("Shape", g.image)
    zero = g.constant([0])
    parts = [g.add("Unsqueeze", g.add("Gather", shape, g.constant(axis)), zero) for axis in (2, 3)]
    size = g.add("Cast", g.add("Concat", *parts, axis=0), to=INT64)
    full = g.upsample(sizes=g.sizes(size), coordinate_transformation_mode="pytorch_half_pixel")
    return g.argmax(full, keepdims=1)


def one_axis_at_a_time(g: Builder) -> str:
    height, width = (g.add("Shape", g.nchw, start=i, end=i + 1) for i in (2, 3))
    size = g.add("Concat", g.add("Reshape", height, g.constant([-1])), width, axis=0)
    return g.argmax(g.upsample(sizes=size, axes=[2, 3], antialias=0))


def softmax(g: Builder) -> str:
    full = g.add("Softmax", g.upsample(), axis=1)
    return g.add("Cast", g.argmax(full, axis=-3), to=UINT8)


def log_softmax(g: Builder) -> str:
    return g.argmax(g.add("LogSoftmax", g.upsample(), axis=1))


def softmax_turned(g: Builder) -> str:
    full = g.add("Transpose", g.upsample(), perm=[0, 3, 2, 1])
    return g.argmax(g.add("Transpose", g.add("Softmax", full, axis=3), perm=[0, 3, 2, 1]))


def probabilities_enlarged(g: Builder) -> str:
    return g.argmax(g.upsample(g.add("Softmax", g.scores, axis=1)))


def sigmoids_enlarged(g: Builder) -> str:
    return g.argmax(g.upsample(g.add("Sigmoid", g.scores)))


def channels_last(g: Builder) -> str:
    full = g.add("Transpose", g.upsample(), perm=[0, 2, 3, 1])
    return g.add("Cast", g.argmax(full, axis=-1), to=INT8)


def two_in_a_chain(g: Builder) -> str:
    middle = g.scale(g.scores, [1, 1, 2, 2])
    return g.argmax(g.upsample(middle, g.sizes(scores=middle)))


def via_features(g: Builder) -> str:
    middle = g.upsample(sizes=g.sizes(g.shape_of(g.features, 2, 4)))
    return g.argmax(g.upsample(middle, g.sizes(scores=middle)))


def twin_classes(g: Builder) -> str:
    twins = g.add("Gather", g.scores, g.constant([0, 1, 1, 0, 2]), axis=1)
    return g.argmax(g.upsample(twins))


def sum_of_two(g: Builder) -> str:
    more = g.constant(np.full((4, 6, 1, 1), 0.25, np.float32))
    both = g.add("Add", g.scores, g.add("Conv", g.features, more))
    return g.argmax(g.upsample(both))


def corners(g: Builder) -> str:
    return g.argmax(g.upsample(coordinate_transformation_mode="align_corners"))


def factor_of_four(g: Builder) -> str:
    return g.argmax(g.scale(g.scores, [1, 1, 4, 4]))


def factors_to_the_corners(g: Builder) -> str:
    mode = "align_corners"
    return g.argmax(g.scale(g.scores, [1, 1, 4, 4], coordinate_transformation_mode=mode))


SIZED: dict[str, tuple[Callable[[Builder], str], dict[str, object]]] = {
    "paddle": (paddle, {}),
    "mmdeploy": (mmdeploy, {}),
    "one axis at a time": (one_axis_at_a_time, {"opset": 18}),
    "old empty inputs": (softmax_turned, {"opset": 11}),
    "softmax": (softmax, {}),
    "log softmax": (log_softmax, {}),
    "probabilities enlarged": (probabilities_enlarged, {}),
    "sigmoids enlarged": (sigmoids_enlarged, {}),
    "channels last": (channels_last, {}),
    "two in a chain": (two_in_a_chain, {}),
    "via features": (via_features, {}),
    "twin classes": (twin_classes, {}),
    "sum of two": (sum_of_two, {}),
    "uint8 NHWC": (softmax, {"uint8": True}),
    "300 classes": (lambda g: g.argmax(g.upsample()), {"classes": 300}),
}


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("name", SIZED)
def test_a_peeled_tail_gives_the_labels_of_the_whole_graph(
    tmp_path: Path, name: str, backend: str
) -> None:
    tail, options = SIZED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(one(tail, **options))

    found = compare(path, backend=backend)

    assert found.wrong == 0
    assert found.ties <= found.pixels / 1000
    assert found.classes > 1


FACTORS = {
    "corners": (corners, True, None),
    "factor of four": (factor_of_four, False, (4, 4)),
    "factors to the corners": (factors_to_the_corners, True, (4, 4)),
}


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("name", FACTORS)
def test_factors_and_aligned_corners_are_kept(tmp_path: Path, name: str, backend: str) -> None:
    tail, align_corners, factors = FACTORS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(one(tail))

    found = compare(path, backend=backend, align_corners=align_corners, factors=factors)

    assert found.wrong == 0
    assert found.ties <= found.pixels / 1000
    assert found.classes > 1


def sigmoid_above_half(g: Builder) -> str:
    mask = g.add("Greater", g.add("Sigmoid", g.upsample()), g.constant(np.float32(0.5)))
    return g.add("Cast", g.add("Squeeze", mask, g.constant([1])), to=UINT8)


def score_above_zero(g: Builder) -> str:
    flat = g.add("Squeeze", g.upsample(), g.constant([1]))
    return g.add("Cast", g.add("Greater", flat, g.constant(np.float32(0))), to=INT64)


def first_channel(g: Builder) -> str:
    mask = g.add("GreaterOrEqual", g.upsample(), g.constant(np.full(1, 0.25, np.float32)))
    return g.add("Gather", mask, g.constant(0), axis=1)


def sigmoid_at_least_a_third(g: Builder) -> str:
    first = g.add("Gather", g.upsample(), g.constant(0), axis=1)
    return g.add("GreaterOrEqual", g.add("Sigmoid", first), g.constant(np.float32(1 / 3)))


def enlarged_sigmoid(g: Builder) -> str:
    full = g.upsample(g.add("Sigmoid", g.scores))
    return g.add("Greater", full, g.constant(np.float32(0.6)))


BINARY = {
    "sigmoid above half": (sigmoid_above_half, 0.0),
    "score above zero": (score_above_zero, 0.0),
    "first channel": (first_channel, 0.25),
    "sigmoid at least a third": (sigmoid_at_least_a_third, float(np.log(0.5))),
    "enlarged sigmoid": (enlarged_sigmoid, 0.6),
}


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("name", BINARY)
def test_a_threshold_on_one_class_is_kept(tmp_path: Path, name: str, backend: str) -> None:
    tail, threshold = BINARY[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(one(tail, classes=1))

    found = compare(path, backend=backend, threshold=threshold)

    assert found.wrong == 0
    assert found.ties <= found.pixels / 1000
    assert found.classes == 2


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("comparison", ["Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_plateaus_at_the_threshold_are_labelled_as_the_graph_does(
    tmp_path: Path, comparison: str, threshold: float, backend: str
) -> None:
    builder = GraphBuilder(classes=1)
    floor = builder.constant(np.float32(threshold))
    flat = builder.add("Clip", builder.scores, floor)  # half of them are the threshold
    mask = builder.add(comparison, builder.upsample(flat), floor)
    path = tmp_path / "model.onnx"
    path.write_bytes(builder.build(mask))

    found = compare(path, backend=backend, threshold=threshold)

    assert found.wrong == 0
    assert found.ties <= found.pixels / 300  # others than these: a third of all pixels


@pytest.mark.parametrize("backend", backend_names())
def test_a_fixed_size_that_is_the_images_is_peeled(tmp_path: Path, backend: str) -> None:
    builder = GraphBuilder(size=(24, 40), batch=1)
    path = tmp_path / "model.onnx"
    sizes = builder.constant([1, 4, 24, 40])
    path.write_bytes(builder.build(builder.argmax(builder.upsample(sizes=sizes))))

    found = compare(path, backend=backend, sizes=[(24, 40)] * 3)

    assert (found.wrong, found.ties) == (0, 0)
    assert found.classes > 1


@pytest.mark.parametrize("backend", backend_names())
def test_half_precision_graphs_without_a_word_on_their_inner_types_are_peeled(
    tmp_path: Path, backend: str
) -> None:
    builder = GraphBuilder()
    half = builder.add("Cast", builder.scores, to=TensorProto.FLOAT16)
    model = onnx.load_from_string(builder.build(builder.argmax(builder.upsample(half))))
    del model.graph.value_info[:]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    with Segmenter.open(path, backend=backend) as segmenter:
        result = segmenter(frame((33, 47)), scores=True)

    assert "peeled" in segmenter.head
    assert result.labels.shape == (33, 47)


@pytest.mark.parametrize("backend", backend_names())
def test_batches_are_finished_as_single_frames_are(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(one(paddle))
    frames = [frame((31, 45), seed) for seed in range(3)]

    with (
        Segmenter.open(path, backend=backend) as peeled,
        Segmenter.open(path, backend=backend, peel=False) as whole,
    ):
        pairs = list(zip(peeled.batch(frames), whole.batch(frames), strict=True))

    for found, expected in pairs:
        assert (found.labels != expected.labels).mean() <= 1e-3


# what must not be peeled: the head would give other labels than the graph


def resized(**attributes: object) -> Callable[[Builder], str]:
    return lambda g: g.argmax(g.upsample(**attributes))  # type: ignore[arg-type]  # Resize's own


def scaled(*scales: float) -> Callable[[Builder], str]:
    return lambda g: g.argmax(g.scale(g.scores, scales))


def compared(value: float, activation: str = "", **attributes: int) -> Callable[[Builder], str]:
    def tail(g: Builder) -> str:
        full = g.add(activation, g.upsample(), **attributes) if activation else g.upsample()
        return g.add("Greater", full, g.constant(np.float32(value)))

    return tail


def twice_the_image(g: Builder) -> str:
    size = g.add("Mul", g.shape_of(g.image, 2, 4), g.constant([2, 2]))
    return g.argmax(g.upsample(sizes=g.sizes(size)))


def width_before_height(g: Builder) -> str:
    size = g.add("Gather", g.shape_of(g.image, 2, 4), g.constant([1, 0]))
    return g.argmax(g.upsample(sizes=g.sizes(size)))


def columns_mistaken_for_rows(g: Builder) -> str:
    two = g.add("Unsqueeze", g.shape_of(g.image, 2, 4), g.constant([1]))  # [[H], [W]]
    other = g.add("Unsqueeze", g.shape_of(g.image, 0, 2), g.constant([1]))
    flat = g.add("Reshape", g.add("Concat", other, two, axis=1), g.constant([-1]))  # N H 3 W
    return g.argmax(g.upsample(sizes=flat))


def more_classes_than_there_are(g: Builder) -> str:
    size = g.add("Concat", g.constant([1, 8]), g.shape_of(g.image, 2, 4), axis=0)
    return g.argmax(g.upsample(sizes=size))


def stretched_by_a_constant(g: Builder) -> str:
    taller = g.add("Add", g.image, g.constant(np.ones((3, 48, 1), np.float32)))  # of one row: 48
    return g.argmax(g.upsample(sizes=g.sizes(g.shape_of(taller, 2, 4))))


def padded_image(g: Builder) -> str:
    padded = g.add("Pad", g.image, g.constant([0, 0, 1, 1, 0, 0, 1, 1]))
    return g.argmax(g.upsample(sizes=g.sizes(g.shape_of(padded, 2, 4))))


def cropped_image(g: Builder) -> str:
    part = g.add("Slice", g.image, *(g.constant([n]) for n in (0, 16, 2)))
    return g.argmax(g.upsample(sizes=g.sizes(g.shape_of(part, 2, 4))))


def turned_labels(g: Builder) -> str:
    full = g.add("Transpose", g.upsample(), perm=[0, 3, 2, 1])
    return g.argmax(full, axis=3)


def scores_channels_last(g: Builder) -> str:
    last = g.add("Transpose", g.scores, perm=[0, 2, 3, 1])
    return g.argmax(g.scale(last, [1, 4, 4, 1]), axis=3)


def changed_at_full_size(g: Builder) -> str:
    return g.argmax(
        g.add("Mul", g.upsample(), g.constant(np.arange(4, dtype=np.float32).reshape(4, 1, 1)))
    )


def foreground_only(g: Builder) -> str:
    return g.add("Cast", g.argmax(g.upsample()), to=TensorProto.BOOL)


def first_row(g: Builder) -> str:
    return g.add("Gather", g.argmax(g.upsample()), g.constant(0), axis=1)


def rounded_at_full_size(g: Builder) -> str:
    return g.argmax(g.add("Cast", g.upsample(), to=TensorProto.FLOAT16))


def old_softmax(g: Builder) -> str:
    return g.argmax(g.add("Softmax", g.upsample(), axis=1))


IMAGE_SIZE = "not known to give the image's size"
WHOLE: dict[str, tuple[Callable[[Builder], str], str, dict[str, object]]] = {
    "asymmetric": (
        resized(coordinate_transformation_mode="asymmetric"),
        "coordinates asymmetric",
        {},
    ),
    "half_pixel_symmetric": (
        resized(coordinate_transformation_mode="half_pixel_symmetric"),
        "coordinates half_pixel_symmetric",
        {"opset": 19},
    ),
    "tf_crop_and_resize": (
        resized(coordinate_transformation_mode="tf_crop_and_resize"),
        "nothing is upsampled",
        {},
    ),
    "nearest": (resized(mode="nearest"), "nothing is upsampled", {}),
    "cubic": (resized(mode="cubic"), "nothing is upsampled", {}),
    "antialias": (resized(antialias=1), "nothing is upsampled", {"opset": 18}),
    "exclude outside": (resized(exclude_outside=1), "nothing is upsampled", {}),
    "fractional scales": (scaled(1, 1, 3.5, 4), IMAGE_SIZE, {}),
    "shrinking": (scaled(1, 1, 0.5, 0.5), IMAGE_SIZE, {}),
    "scales of classes": (scaled(1, 2, 4, 1), IMAGE_SIZE, {}),
    "twice the image": (twice_the_image, IMAGE_SIZE, {}),
    "constant size": (
        lambda g: g.argmax(g.upsample(sizes=g.constant([1, 4, 64, 48]))),
        IMAGE_SIZE,
        {},
    ),
    "size of features": (
        lambda g: g.argmax(g.upsample(sizes=g.sizes(g.shape_of(g.features, 2, 4)))),
        IMAGE_SIZE,
        {},
    ),
    "width before height": (width_before_height, IMAGE_SIZE, {}),
    "columns as rows": (columns_mistaken_for_rows, IMAGE_SIZE, {}),
    "more classes": (more_classes_than_there_are, IMAGE_SIZE, {}),
    "stretched by a constant": (stretched_by_a_constant, IMAGE_SIZE, {}),
    "padded image": (padded_image, IMAGE_SIZE, {}),
    "cropped image": (cropped_image, IMAGE_SIZE, {}),
    "turned labels": (turned_labels, "does not end in class ids", {}),
    "scores channels last": (scores_channels_last, "not the second axis", {}),
    "changed at full size": (changed_at_full_size, "nothing is upsampled", {}),
    "foreground only": (foreground_only, "does not end in class ids", {}),
    "first row": (first_row, "does not end in class ids", {}),
    "rounded at full size": (rounded_at_full_size, "nothing is upsampled", {}),
    "old softmax": (old_softmax, "nothing is upsampled", {"opset": 11}),
    "last of ties": (lambda g: g.argmax(g.upsample(), select_last_index=1), "last class", {}),
    "single class": (lambda g: g.argmax(g.upsample()), "a single class", {"classes": 1}),
    "sigmoid, argmax": (
        lambda g: g.argmax(g.add("Sigmoid", g.upsample())),
        "sigmoid makes high scores equal",
        {},
    ),
    "mask of each class": (compared(0.5), "several classes with a threshold", {}),
    "softmax of one": (compared(0.5, "Softmax", axis=1), "on a softmax", {"classes": 1}),
    "unreachable": (compared(1.5, "Sigmoid"), "not reached by any score", {"classes": 1}),
    "not a number": (compared(float("nan")), "not a number", {"classes": 1}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_tail_that_the_head_would_finish_otherwise_is_left_whole(name: str) -> None:
    tail, reason, options = WHOLE[name]

    found = decide(one(tail, **options))

    assert isinstance(found, str)
    assert reason in found


def test_the_first_argmax_of_a_graph_is_not_mistaken_for_the_last() -> None:
    builder = GraphBuilder()
    other = builder.argmax(builder.features, select_last_index=1, keepdims=1)
    other = builder.add("Cast", other, to=TensorProto.FLOAT)
    mixed = builder.add("Concat", builder.features, other, axis=1)
    last = builder.constant(np.ones((4, 7, 1, 1), np.float32))
    scores = builder.add("Conv", mixed, last)

    found = decide(builder.build(builder.argmax(builder.upsample(scores))))

    assert isinstance(found, PeeledTail)


def test_the_shape_of_a_second_input_is_not_the_images() -> None:
    builder = GraphBuilder()
    model = onnx.load_from_string(builder.build(builder.argmax(builder.upsample())))
    model.graph.input.append(
        helper.make_tensor_value_info("guide", TensorProto.FLOAT, ["n", 3, "x", "y"])
    )
    shape = next(node for node in model.graph.node if node.op_type == "Shape")
    shape.input[0] = "guide"

    assert decide(model.SerializeToString()) == "its input is no image"


def test_a_graph_with_several_outputs_is_run_whole(tmp_path: Path) -> None:
    builder = GraphBuilder()
    path = tmp_path / "model.onnx"
    full = builder.upsample()
    path.write_bytes(builder.build(builder.argmax(full), full))

    with Segmenter.open(path, backend="onnxruntime") as segmenter:
        assert segmenter.head in (
            "in the graph, as it has several outputs",
            "in the runtime, as the graph ends in scores",
        )


def test_a_graph_with_weights_in_other_files_is_run_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(one(paddle))
    onnx.save(model, path, save_as_external_data=True, size_threshold=200, location="weights")

    with Segmenter.open(path, backend="onnxruntime") as segmenter:
        labels = segmenter(frame((33, 47))).labels

    assert segmenter.head == "in the graph, as its weights lie in files of their own"
    assert labels.shape == (33, 47)


@pytest.mark.parametrize("op", ["Cast", "Identity", "Unsqueeze", "Concat"])
def test_endless_chains_of_sizes_are_given_up_early(op: str) -> None:
    builder = GraphBuilder()
    size = builder.shape_of(builder.image, 2, 4)
    more: dict[str, dict[str, int]] = {"Cast": {"to": INT64}, "Concat": {"axis": 0}}
    extra = [builder.constant([0])] if op == "Unsqueeze" else []
    for _ in range(50 if op == "Concat" else 19_000):
        size = builder.add(op, size, *([size] if op == "Concat" else extra), **more.get(op, {}))
    labels = builder.argmax(builder.upsample(sizes=size))

    found = decide(builder.build(labels, typed=False))

    assert found == "its upsampling is not known to give the image's size"


@pytest.mark.parametrize("op", ["Cast", "Identity", "Transpose"])
def test_endless_chains_of_scores_and_labels_are_walked(op: str) -> None:
    builder = GraphBuilder()
    steps: dict[str, dict[str, object]] = {
        "Cast": {"to": TensorProto.FLOAT},
        "Identity": {},
        "Transpose": {"perm": [0, 1, 2, 3]},
    }
    full = builder.upsample()
    for _ in range(9_000):
        full = builder.add(op, full, **steps[op])
    labels = builder.argmax(full)
    for _ in range(9_000):
        labels = builder.add("Cast", labels, to=UINT8)

    assert isinstance(decide(builder.build(labels)), PeeledTail)
