"""A bare file's output is read as what its graph, its user and its values say it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcn_deploy import Segmenter
from fcn_deploy.errors import ArtifactError
from fcn_deploy.names import Array
from fcn_deploy.opening.bare_output import varied_frames
from fcn_deploy.telemetry import import_openvino
from tests.deploy.artifacts import write_artifact
from tests.deploy.output_graphs import FLOAT16, Chain

BACKENDS = ("openvino", "onnxruntime")
FRAME = np.random.default_rng(9).integers(0, 256, (24, 40, 3), np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def chain(classes: int = 1, **options: Any) -> Chain:
    return Chain(classes, **options)


def write(folder: Path, made: Chain, dims: Any = None, dtype: int = TensorProto.FLOAT) -> Path:
    path = folder / "bare.onnx"
    path.write_bytes(made.built(dims, dtype=dtype)[0])
    return path


def true_scores(made: Chain) -> Array:
    """The convolution's scores [C, H, W] of the frame, in NumPy."""
    rgb = FRAME[..., ::-1].astype(np.float32) / 255
    image = ((rgb - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(2, 0, 1)
    found: Array = made.scores(image[None])[0]
    return found


def sigmoid(scores: Array) -> Array:
    return 1 / (1 + np.exp(-scores))


ENDINGS = {
    "logits": lambda one: one,
    "sigmoid": lambda one: one.then("Sigmoid"),
    "sigmoid, then Identity": lambda one: one.then("Sigmoid").then("Identity"),
    "sigmoid, then Clip": lambda one: one.then("Sigmoid").then(
        "Clip", one.constant(0), one.constant(1)
    ),
    "sigmoid, then Mul by 1": lambda one: one.then("Sigmoid").then("Mul", one.constant(1)),
    "sigmoid, then Add of an epsilon": lambda one: one.then("Sigmoid").then(
        "Add", one.constant(1e-7)
    ),
    "sigmoid, then Resize": lambda one: one.then("Sigmoid").then(
        "Resize", "", one.constant([1, 1, 1, 1]), mode="linear"
    ),
    "one minus a sigmoid": lambda one: (
        one.then("Neg").then("Sigmoid").then("Neg").then("Add", one.constant(1))
    ),
    "hard sigmoid": lambda one: one.then("HardSigmoid", alpha=1 / 6, beta=0.5),
    "negated twice": lambda one: one.then("Neg").then("Neg"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_single_class_is_where_its_probability_is_above_one_half(
    tmp_path: Path, ending: str, backend: str
) -> None:
    made = ENDINGS[ending](chain())

    with Segmenter.open(write(tmp_path, made), backend=backend, cache=False) as segmenter:
        labels = segmenter(FRAME).labels

    expected = true_scores(made)[0] > 0
    assert 0.1 < expected.mean() < 0.9
    assert np.mean(labels == expected) > 0.999  # float32 rounding at the threshold


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_squeezed_single_class_is_read_as_one(tmp_path: Path, backend: str) -> None:
    made = chain().then("Sigmoid")
    made.then("Squeeze", made.integers([1]))

    with Segmenter.open(write(tmp_path, made, ("n", "h", "w")), backend=backend) as segmenter:
        result = segmenter(FRAME, scores=True)

    assert result.scores is not None
    assert np.mean(result.labels == (true_scores(made)[0] > 0)) > 0.999
    # float32 rounding of two libraries
    np.testing.assert_allclose(
        result.probabilities()[0], sigmoid(true_scores(made)[0]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64])
def test_class_ids_are_labels_whatever_their_type(
    tmp_path: Path, dtype: int, keepdims: int, backend: str
) -> None:
    made = chain(4).then("ArgMax", axis=1, keepdims=keepdims).then("Cast", to=dtype)
    dims = ("n", 1, "h", "w") if keepdims else ("n", "h", "w")

    with Segmenter.open(write(tmp_path, made, dims, dtype), backend=backend) as segmenter:
        labels = segmenter(FRAME).labels

    assert labels.dtype == np.uint8
    assert np.mean(labels == true_scores(made).argmax(0)) > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_with_the_classes_last_are_labels(tmp_path: Path, backend: str) -> None:
    made = chain(4).then("Transpose", perm=[0, 2, 3, 1])
    made.then("ArgMax", axis=3, keepdims=1).then("Cast", to=TensorProto.FLOAT)

    with Segmenter.open(write(tmp_path, made, ("n", "h", "w", 1)), backend=backend) as segmenter:
        labels = segmenter(FRAME).labels

    assert np.mean(labels == true_scores(made).argmax(0)) > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_with_the_classes_last_are_read_by_the_graph(tmp_path: Path, backend: str) -> None:
    made = chain(5).then("Transpose", perm=[0, 2, 3, 1]).then("Softmax", axis=3)

    with Segmenter.open(write(tmp_path, made, ("n", "h", "w", 5)), backend=backend) as segmenter:
        result = segmenter(FRAME, scores=True)

    grown = np.exp(true_scores(made))
    assert np.mean(result.labels == grown.argmax(0)) > 0.999
    found = result.probabilities()
    assert found.dtype == np.float32
    assert found.shape == (5, 24, 40)
    np.testing.assert_allclose(found, grown / grown.sum(0), rtol=1e-3, atol=1e-4)


def test_a_given_threshold_is_a_probability(tmp_path: Path) -> None:
    for ending in ("logits", "sigmoid"):
        made = ENDINGS[ending](chain())
        with Segmenter.open(write(tmp_path, made), threshold=0.8) as segmenter:
            labels = segmenter(FRAME).labels

        assert np.mean(labels == (sigmoid(true_scores(made)[0]) > 0.8)) > 0.999


def test_a_threshold_for_several_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"--threshold 0.7 was given for .*Leave --threshold"):
        Segmenter.open(write(tmp_path, chain(4)), threshold=0.7)


def test_a_threshold_for_labels_is_refused_and_not_ignored(tmp_path: Path) -> None:
    made = chain(4).then("ArgMax", axis=1, keepdims=0)
    path = write(tmp_path, made, ("n", "h", "w"), TensorProto.INT64)

    with pytest.raises(ArtifactError, match=r"--threshold 0.7 .*holds ids"):
        Segmenter.open(path, threshold=0.7)


def test_what_is_not_known_is_an_error_that_names_the_options(tmp_path: Path) -> None:
    path = write(tmp_path, chain().then("Erf"))

    with pytest.raises(ArtifactError, match=r"not known: it ends in .*Erf.*--activation .*--thre"):
        Segmenter.open(path)


def test_the_user_says_what_the_graph_does_not(tmp_path: Path) -> None:
    made = chain().then("Sigmoid").then("Erf")  # 0..1, and one that no rule knows

    with Segmenter.open(
        write(tmp_path, made), activation="sigmoid", threshold=0.52, backend="onnxruntime"
    ) as segmenter:
        labels = segmenter(FRAME).labels

    # Erf(0.4994) is 0.52
    assert np.mean(labels == (sigmoid(true_scores(made)[0]) > 0.4994)) > 0.99


def test_a_word_that_the_values_contradict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"taken for sigmoid .* its values are .* not 0 to 1"):
        Segmenter.open(write(tmp_path, chain()), activation="sigmoid")


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation is 'relu'; expected one of"):
        Segmenter.open(write(tmp_path, chain()), activation="relu")
    with pytest.raises(ValueError, match=r"threshold is 1\.5; expected a probability"):
        Segmenter.open(write(tmp_path, chain()), threshold=1.5)


@pytest.mark.parametrize(
    "given", [{"activation": "sigmoid"}, {"threshold": 0.4}, {"output_key": "labels"}]
)
def test_an_artifact_says_itself_what_it_gives(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} cannot be given: the artifact says"):
        Segmenter.open(write_artifact(tmp_path), **given)


def two_outputs(folder: Path, first: str, second: str) -> Path:
    made = chain(3)
    model = onnx.load_model_from_string(made.built()[0])
    model.graph.output[0].name = first
    model.graph.node[-1].output[0] = first
    model.graph.node.append(helper.make_node("Neg", ["s"], [second]))
    model.graph.output.append(
        helper.make_tensor_value_info(second, TensorProto.FLOAT, ["n", 3, "oh", "ow"])
    )
    path = folder / "two.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_output_can_be_named(tmp_path: Path, backend: str) -> None:
    path = two_outputs(tmp_path, "first", "second")

    labels = {
        key: Segmenter.open(path, output_key=key, backend=backend)(FRAME).labels
        for key in ("first", "second")
    }

    scores = true_scores(chain(3))
    assert np.mean(labels["first"] == scores.argmax(0)) > 0.999
    assert np.mean(labels["second"] == scores.argmin(0)) > 0.999


def test_several_outputs_are_listed_and_the_option_named(tmp_path: Path) -> None:
    path = two_outputs(tmp_path, "first", "second")

    with pytest.raises(ArtifactError, match=r"outputs: first, second\..*--output-key"):
        Segmenter.open(path)
    with pytest.raises(ArtifactError, match=r"no output 'third'; it has first, second"):
        Segmenter.open(path, output_key="third")


def test_labels_are_taken_before_the_scores_of_another_head(tmp_path: Path) -> None:
    made = chain(3)
    model = onnx.load_model_from_string(made.built()[0])
    scores = model.graph.output[0].name
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", [scores], ["seg"], axis=1, keepdims=0),
            helper.make_node("Neg", [scores], ["aux"]),
        ]
    )
    del model.graph.output[:]
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("aux", TensorProto.FLOAT, ["n", 3, "h", "w"]),
            helper.make_tensor_value_info("seg", TensorProto.INT64, ["n", "h", "w"]),
        ]
    )
    path = tmp_path / "heads.onnx"
    onnx.save(model, path)

    labels = Segmenter.open(path)(FRAME).labels

    assert np.mean(labels == true_scores(made).argmax(0)) > 0.999


def test_labels_beside_scores_with_the_classes_last_are_no_queries(tmp_path: Path) -> None:
    made = chain(5)
    model = onnx.load_model_from_string(made.built()[0])
    scores = model.graph.output[0].name
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", [scores], ["labels"], axis=1, keepdims=0),
            helper.make_node("Transpose", [scores], ["last"], perm=[0, 2, 3, 1]),
        ]
    )
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for size, dim in zip((1, 3, 24, 40), dims, strict=True):
        dim.dim_value = size
    del model.graph.output[:]
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("labels", TensorProto.INT64, [1, 24, 40]),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, 24, 40, 5]),
        ]
    )
    path = tmp_path / "last.onnx"
    onnx.save(model, path)

    labels = Segmenter.open(path)(FRAME).labels

    assert np.mean(labels == true_scores(made).argmax(0)) > 0.999


def test_quantised_activations_are_not_taken_for_class_ids(tmp_path: Path) -> None:
    made = chain(1).then("Relu")
    made.then("QuantizeLinear", made.constant(0.01), made.constant(0, np.uint8))
    path = write(tmp_path, made, dtype=TensorProto.UINT8)

    with pytest.raises(ArtifactError, match="--activation"):
        Segmenter.open(path)


def test_scores_without_a_batch_axis_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    made = chain(5)
    made.then("Squeeze", made.constant([0], np.int64))
    path = write(tmp_path, made, dims=[5, "h", "w"])

    with pytest.raises(ArtifactError, match=r"5 classes; expected scores \[N, C, H, W\]"):
        Segmenter.open(path, activation="logits")


def queries(folder: Path) -> Path:
    model = onnx.load_model_from_string(chain(7).built()[0])
    model.graph.output[0].name = model.graph.node[-1].output[0] = "pred_masks"
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim[1].dim_value = 7
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", ["s"], ["pooled"]),
            helper.make_node("Squeeze", ["pooled", "last"], ["pred_logits"]),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3], np.int64), "last"))
    model.graph.output.append(
        helper.make_tensor_value_info("pred_logits", TensorProto.FLOAT, ["n", 7, 1])
    )
    path = folder / "queries.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("key", [None, "pred_masks", "pred_logits"])
def test_a_query_network_is_refused_as_one(tmp_path: Path, key: str | None) -> None:
    with pytest.raises(ArtifactError, match=r"gives masks 'pred_masks' of queries whose classes"):
        Segmenter.open(queries(tmp_path), output_key=key)


def test_scores_and_probabilities_of_an_fp16_output_are_float32(tmp_path: Path) -> None:
    made = chain(3).then("Cast", to=FLOAT16)

    with Segmenter.open(write(tmp_path, made, dtype=FLOAT16), backend="onnxruntime") as segmenter:
        result = segmenter(FRAME, scores=True)

    assert result.scores is not None
    assert result.scores.dtype == np.float32
    grown = np.exp(true_scores(made))
    # float16 keeps 11 bits of scores up to about 10
    np.testing.assert_allclose(result.probabilities(), grown / grown.sum(0), atol=0.01)


def test_probabilities_need_the_scores(tmp_path: Path) -> None:
    with Segmenter.open(write(tmp_path, chain(3))) as segmenter:
        result = segmenter(FRAME)

    with pytest.raises(ValueError, match=r"holds no scores; ask for them with .*scores=True"):
        result.probabilities()


def test_probabilities_of_unknown_scores_are_refused(tmp_path: Path) -> None:
    made = chain(3).then("Erf").then("ArgMax", axis=1, keepdims=0)
    path = write(tmp_path, made, ("n", "h", "w"), TensorProto.INT64)

    with Segmenter.open(path) as segmenter:
        result = segmenter(FRAME, scores=True)

    with pytest.raises(ValueError, match=r"what the scores of 'bare\.onnx' are is not known"):
        result.probabilities()


def test_openvinos_own_files_of_several_classes_are_told_by_their_values(tmp_path: Path) -> None:
    openvino = import_openvino()

    made = chain(3).then("Softmax", axis=1)
    openvino.save_model(
        openvino.convert_model(write(tmp_path, made)), tmp_path / "bare.xml", compress_to_fp16=False
    )

    with Segmenter.open(tmp_path / "bare.xml") as segmenter:
        result = segmenter(FRAME, scores=True)

    grown = np.exp(true_scores(made))
    assert np.mean(result.labels == grown.argmax(0)) > 0.999
    np.testing.assert_allclose(result.probabilities(), grown / grown.sum(0), rtol=1e-3, atol=1e-3)


def test_openvinos_own_file_of_a_single_class_has_to_be_told(tmp_path: Path) -> None:
    openvino = import_openvino()

    made = chain().then("Sigmoid")
    openvino.save_model(
        openvino.convert_model(write(tmp_path, made)), tmp_path / "bare.xml", compress_to_fp16=False
    )

    with pytest.raises(ArtifactError, match=r"an operator of a \.xml file.*--activation"):
        Segmenter.open(tmp_path / "bare.xml")
    with Segmenter.open(tmp_path / "bare.xml", activation="sigmoid") as segmenter:
        labels = segmenter(FRAME).labels
    assert np.mean(labels == (true_scores(made)[0] > 0)) > 0.999


def test_a_network_that_takes_no_tried_size_is_opened_by_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fcn_deploy.opening.bare_output.TRIED_SIZES", ())

    with caplog.at_level(logging.WARNING):
        labels = Segmenter.open(write(tmp_path, chain().then("Sigmoid")))(FRAME).labels

    assert "takes none of the sizes that were tried" in caplog.text
    assert np.mean(labels == (true_scores(chain())[0] > 0)) > 0.999


def test_varied_frames_differ() -> None:
    frames = varied_frames(20, 30)

    assert {one.shape for one in frames} == {(20, 30, 3)}
    assert len({one.tobytes() for one in frames}) == len(frames) == 4
