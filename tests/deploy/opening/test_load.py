"""Artifacts, files in them and bare graphs are opened as what they are, or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy import Segmenter
from fcn_deploy.artifact.manifest import TensorInfo
from fcn_deploy.backends import backend_names
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendUnavailableError,
    DigestMismatchError,
    FcnDeployError,
    ManifestError,
    UntrustedArtifactError,
)
from fcn_deploy.names import Precision
from tests.deploy.artifacts import frame, write_artifact, write_graph


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize(("layout", "color"), [("NCHW", "rgb"), ("NHWC", "bgr")])
def test_a_bare_float_graph_gets_its_preprocessing_and_its_head(
    tmp_path: Path, backend: str, layout: str, color: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_graph(tmp_path, input_type=TensorProto.FLOAT, layout=layout, head="scores")

    with caplog.at_level(logging.WARNING):
        segmenter = Segmenter.open(path, backend=backend, color=color)
    result = segmenter(frame(24, 32), scores=True)

    assert segmenter.precision is Precision.FP32
    assert segmenter.head == "in the runtime, as the graph ends in scores"
    assert "has no manifest" in caplog.text
    assert color in caplog.text
    assert result.labels.shape == (24, 32)
    assert result.scores is not None
    assert result.scores.shape == (3, 12, 16)
    assert [entry.name for entry in result.classes] == ["0", "1", "2"]


def test_a_bare_float_graph_equals_a_reference(tmp_path: Path) -> None:
    import onnxruntime

    path = write_graph(tmp_path, input_type=TensorProto.FLOAT, layout="NCHW", head="scores")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    rgb = frame()[..., ::-1].astype(np.float32) / 255
    feed = ((rgb - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": feed})[0][0]

    segmenter = Segmenter.open(path, mean=mean, std=std, backend="onnxruntime")
    result = segmenter(frame(), scores=True)

    assert result.scores is not None
    # float32 rounding of two orders of the same operations
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-4)


def test_usual_statistics_follow_the_network_s_order_of_channels(tmp_path: Path) -> None:
    path = write_graph(tmp_path, input_type=TensorProto.FLOAT, layout="NCHW", head="scores")
    mean, std = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)  # ImageNet's blue, green, red

    usual = Segmenter.open(path, color="bgr")(frame(), scores=True).scores
    named = Segmenter.open(path, color="bgr", mean=mean, std=std)(frame(), scores=True).scores
    reversed_ = Segmenter.open(path, color="bgr", mean=mean[::-1], std=std[::-1])

    assert usual is not None
    assert named is not None
    np.testing.assert_array_equal(usual, named)
    assert not np.array_equal(usual, np.asarray(reversed_(frame(), scores=True).scores))


@pytest.mark.parametrize("head", ["scores", "sigmoid"])
def test_one_class_means_probability_above_one_half(tmp_path: Path, head: str) -> None:
    graph = {"input_type": TensorProto.FLOAT, "layout": "NCHW", "classes": 1, "stride": 1}
    path = write_graph(tmp_path, head=head, **graph)
    segmenter = Segmenter.open(path)

    result = segmenter(frame(), scores=True)

    assert result.scores is not None
    logits_of = Segmenter.open(write_graph(tmp_path, head="scores", **graph))
    scores = logits_of(frame(), scores=True).scores
    assert scores is not None
    np.testing.assert_array_equal(result.labels, (scores[0] > 0).astype(np.uint8))
    assert 0 < result.labels.mean() < 1


def test_a_bare_uint8_graph_is_given_frames_in_the_order_asked_for(tmp_path: Path) -> None:
    bgr = Segmenter.open(write_graph(tmp_path), color="bgr")
    rgb = Segmenter.open(write_graph(tmp_path))

    np.testing.assert_array_equal(bgr(frame()[..., ::-1]).labels, rgb(frame()).labels)


def test_a_file_in_an_artifact_is_opened_with_its_manifest(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)

    segmenter = Segmenter.open(path / "model.onnx")

    assert segmenter.manifest is not None
    assert [entry.name for entry in segmenter.classes] == ["sky", "road", "car"]


def test_preprocessing_of_an_artifact_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mean cannot be given"):
        Segmenter.open(write_artifact(tmp_path), mean=(0.5, 0.5, 0.5))


def test_a_damaged_graph_never_reaches_a_parser(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)
    content = bytearray((path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.onnx").write_bytes(content)

    with pytest.raises(DigestMismatchError, match="SHA-256"):
        Segmenter.open(path)


def test_a_manifest_of_another_graph_is_refused(tmp_path: Path) -> None:
    info = TensorInfo("picture", "uint8", (None, None, None, 3), "NHWC", "bgr")

    with pytest.raises(ManifestError, match="says input 'picture'"):
        Segmenter.open(write_artifact(tmp_path, inputs=(info,)))


def test_a_linked_graph_is_refused(tmp_path: Path) -> None:
    target = write_graph(tmp_path)
    (tmp_path / "link.onnx").symlink_to(target)

    with pytest.raises(UntrustedArtifactError, match="symbolic link"):
        Segmenter.open(tmp_path / "link.onnx")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nothing.fcn", ArtifactMissingError, "there is no"),
        ("weights.pt", ArtifactError, "by fcn-export"),
        ("empty.onnx", ArtifactError, r"empty\.onnx"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, name: str, kind: type[FcnDeployError], message: str
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    (tmp_path / "empty.onnx").write_bytes(b"")

    with pytest.raises(kind, match=message):
        Segmenter.open(tmp_path / name)


def test_an_absent_precision_is_an_error_not_a_slower_run(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"cannot compute in bf16.*it can in fp32"):
        Segmenter.open(write_artifact(tmp_path), backend="onnxruntime", precision="bf16")
    with pytest.raises(ValueError, match="expected auto, fp32"):
        Segmenter.open(write_artifact(tmp_path), precision="fp8")
