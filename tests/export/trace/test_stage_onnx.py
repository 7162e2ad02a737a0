"""ONNX files of anyone's making get the artifact's inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportRequest, export_model

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)


def network(
    path: Path,
    *,
    ends: tuple[str, ...] = (),
    dims: tuple[Any, ...] = ("b", 3, "h", "w"),
    classes: int = 4,
    opset: int = 17,
    names: tuple[str, str] = ("input", "output"),
) -> Path:
    """One convolution of stride 2, then the operators that `ends` names."""
    weights = WEIGHTS[:classes, : dims[1]]
    made = [helper.make_node("Conv", [names[0], "weights"], ["t0"], strides=[2, 2], pads=[1] * 4)]
    options: dict[str, dict[str, Any]] = {
        "ArgMax": {"axis": 1, "keepdims": 0},
        "Softmax": {"axis": 1},
    }
    for index, op in enumerate(ends):
        node = helper.make_node(op, [f"t{index}"], [f"t{index + 1}"], **options.get(op, {}))
        made.append(node)
    made[-1].output[0] = names[1]
    labels = ends[-1:] == ("ArgMax",)
    out = helper.make_tensor_value_info(
        names[1],
        TensorProto.INT64 if labels else TensorProto.FLOAT,
        ["b", "h2", "w2"] if labels else ["b", classes, "h2", "w2"],
    )
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, dims)],
        [out],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def request(**options: Any) -> ExportRequest:
    usual = {"size": (48, 56), "min_size": (32, 32), "max_size": (100, 120), "engine": "none"}
    return ExportRequest(**{**usual, **options})


@pytest.mark.parametrize("ends", [(), ("Softmax",), ("ArgMax",), ("Softmax", "ArgMax")])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_float_network_becomes_frames_to_labels(
    tmp_path: Path, ends: tuple[str, ...], opset: int
) -> None:
    path = network(tmp_path / "net.onnx", ends=ends, opset=opset)

    report = export_model(path, tmp_path / "net.fcn", request=request())

    assert (report.exporter, report.opset, report.num_classes) == ("onnx", opset, 4)
    assert len(report.parity) >= 5
    graph = onnx.load(report.path / "model.onnx").graph
    assert graph.node[0].op_type == "Cast"
    assert [node.op_type for node in graph.node][-3:] == ["Resize", "ArgMax", "Cast"]
    assert any("network_scores" in node.output for node in graph.node)
    assert not any(node.op_type == "Softmax" for node in graph.node)
    with Segmenter.open(report.path, precision="fp32") as segmenter:
        assert segmenter(natural_frame(41, 77, seed=1)).labels.shape == (41, 77)


@pytest.mark.parametrize("head", ["scores", "confidence"])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("opset", [13, 18])
def test_other_heads_can_be_put_on(tmp_path: Path, head: Any, classes: int, opset: int) -> None:
    path = network(tmp_path / "net.onnx", classes=classes, opset=opset)

    report = export_model(path, tmp_path / "net.fcn", request=request(head=head))

    outputs = [output.name for output in onnx.load(report.path / "model.onnx").graph.output]
    assert outputs == (["scores"] if head == "scores" else ["labels", "confidence"])


def test_a_sigmoid_is_not_applied_again(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", ends=("Sigmoid",), classes=1)

    report = export_model(path, tmp_path / "net.fcn", request=request())

    with Segmenter.open(report.path, precision="fp32") as segmenter:
        labels = segmenter(natural_frame(64, 64, seed=1)).labels
    assert set(np.unique(labels)) == {0, 1}  # sigmoid twice would be above 0.5 everywhere


def test_a_gray_network_is_fed_luminance(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", dims=("b", 1, "h", "w"))

    report = export_model(path, tmp_path / "net.fcn", request=request(color="gray"))

    assert len(report.parity) >= 5


def test_names_that_clash_with_ours_are_changed(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", names=("image", "labels"))

    report = export_model(path, tmp_path / "net.fcn", request=request())

    assert len(report.parity) >= 5


def test_sizes_fixed_in_the_file_stay_fixed(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", dims=(2, 3, 40, 64))

    report = export_model(path, tmp_path / "net.fcn", request=request())

    assert report.shapes.min == report.shapes.max == (2, 40, 64)
    (row,) = report.parity
    assert (row.batch, row.height, row.width) == (2, 40, 64)


def test_an_artifacts_own_graph_is_kept_as_it_is(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    first = export_model(path, tmp_path / "net.fcn", request=request())

    second = export_model(first.path / "model.onnx", tmp_path / "again.fcn", request=request())

    ours, again = (onnx.load(r.path / "model.onnx").graph for r in (first, second))
    assert [n.op_type for n in ours.node] == [n.op_type for n in again.node]
    assert all(row.max_score_error == 0 for row in second.parity)


def test_external_weights_are_read_from_beside_the_file(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0
    )

    report = export_model(path, tmp_path / "net.fcn", request=request())

    assert [entry.name for entry in report.path.iterdir() if entry.suffix == ".data"] == []
    assert len(report.parity) >= 5


@pytest.mark.parametrize(("options", "message"), [
    ({"opset": 11}, "opset 11; 13 or later is needed"),
    ({"dims": ("b", 1, "h", "w")}, r"colour 'rgb' takes float32 \[N, 3, H, W\]"),
])  # fmt: skip
def test_what_cannot_be_wrapped_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = network(tmp_path / "net.onnx", **options)

    with pytest.raises(UnsupportedModelError, match=message):
        export_model(path, tmp_path / "net.fcn", request=request())


def test_an_unknown_output_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")

    with pytest.raises(UnsupportedModelError, match="has no output 'aux'; it has output"):
        export_model(path, tmp_path / "net.fcn", request=request(output_key="aux"))


def test_large_weights_are_a_listed_file_of_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_export.onnx_file.MAX_SINGLE_FILE_BYTES", 500)
    monkeypatch.setattr("fcn_export.onnx_file.MIN_EXTERNAL_BYTES", 100)
    path = network(tmp_path / "net.onnx")

    report = export_model(path, tmp_path / "net.fcn", request=request())

    manifest = Artifact.open(report.path).manifest
    sizes = {entry.name: entry.size for entry in manifest.files}
    assert list(sizes) == [
        "model.fp16.onnx", "model.fp16.onnx.data", "model.onnx", "model.onnx.data", "report.json",
    ]  # fmt: skip
    assert sizes["model.fp16.onnx.data"] < sizes["model.onnx.data"]
    assert any("model.onnx.data" in note for note in report.notes)
    for precision in ("fp32", "fp16"):
        with Segmenter.open(report.path, precision=precision) as segmenter:
            assert segmenter(natural_frame(41, 77, seed=1)).labels.shape == (41, 77)


def test_many_images_are_measured_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = network(tmp_path / "net.onnx")
    whole = export_model(path, tmp_path / "whole.fcn", request=request())
    monkeypatch.setattr("fcn_export.check.measure.MAX_HELD_BYTES", 1)

    parts = export_model(path, tmp_path / "parts.fcn", request=request())

    for one, other in zip(whole.measured, parts.measured, strict=True):
        assert one.disagreement == other.disagreement
        assert one.images > 1
