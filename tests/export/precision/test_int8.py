"""fcn-export --calibrate: an int8 variant in the artifact, and a budget that holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from rich.console import Console

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.errors import BudgetError
from fcn_deploy.names import Array, Precision
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportRequest, export_model
from fcn_export.precision.calibration_table import TABLE_NAME
from fcn_export.steps import StepEvent
from fcn_models import FCN, Backbone, save_checkpoint
from tests.export.qdq_graphs import FrameGraph
from tests.export.tiny_networks import seeded

_OUTLIER = 3000.0


def _model_with_outliers(rng: np.random.Generator, *, outlier: float = _OUTLIER) -> onnx.ModelProto:
    """Build a network that computes the same whatever `outlier` is.

    Two channels that 'victim' reads are that much larger than the others, and its weights for them
    that much smaller: with one scale for all channels, int8 has no step left for the others.
    """
    graph = FrameGraph(rng)
    factor = np.ones(16)
    factor[:2] = outlier
    graph.conv("input", (3, 16), out="stem")
    graph.op("Relu", "stem", out="stem_relu")
    graph.conv("stem_relu", (16, 16), out="spread", scale=factor.reshape(-1, 1, 1, 1))
    graph.op("Relu", "spread", out="spread_relu")
    graph.conv("spread_relu", (16, 16), out="victim", scale=(1 / factor).reshape(1, -1, 1, 1))
    graph.op("Relu", "victim", out="victim_relu")
    graph.conv("victim_relu", (16, 16), out="after")
    graph.op("Relu", "after", out="after_relu")
    graph.conv("after_relu", (16, 4), out="classifier", kernel=1)
    return graph.model("classifier")


def _write(folder: Path, model: onnx.ModelProto) -> Path:
    """Write a model, frames to calibrate on, and frames with the model's own labels."""
    import onnxruntime

    path = folder / "model.onnx"
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name in ("calibration", "images", "labels"):
        (folder / name).mkdir()
    for seed in range(16):
        frame = natural_frame(64, 96, seed)
        cv2.imwrite(str(folder / "calibration" / f"{seed}.png"), frame)
        other = natural_frame(64, 96, 100 + seed)
        labels: Array = session.run(["labels"], {"image": other[None]})[0][0]
        cv2.imwrite(str(folder / "images" / f"{seed}.png"), other)
        cv2.imwrite(str(folder / "labels" / f"{seed}.png"), labels)
    return path


def _request(folder: Path, max_miou_drop: float) -> ExportRequest:
    return ExportRequest(
        precisions=("int8",),
        calibrate=folder / "calibration",
        eval_folders=(folder / "images", folder / "labels"),
        max_miou_drop=max_miou_drop,
        size=(64, 96),
        min_size=(64, 64),
        max_size=(128, 128),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def test_budget_holds_on_a_layer_with_outliers_and_the_search_names_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, _model_with_outliers(rng))

    report = export_model(path, tmp_path / "out.fcn", request=_request(tmp_path, 12.0))

    document = json.loads(report.to_bytes())
    figures = report.file_of(Precision.INT8).figures
    drops = {
        entry["backend"]: entry["miou_drop"]
        for entry in document["variants"]
        if entry["precision"] == "int8"
    }
    assert set(drops) == {"openvino", "onnxruntime"}
    assert max(drops.values()) <= 12.0
    assert figures["search"]["kept"] == ["victim"]
    assert figures["search"]["ranking"][0]["node"] == "victim"
    assert figures["search"]["pareto"][0]["miou_drop"] > 20
    assert any("'victim' stay in fp32" in note for note in report.notes)


def test_artifact_holds_the_graph_its_ranges_and_what_was_measured(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, _model_with_outliers(rng, outlier=1.0))
    said: list[StepEvent] = []

    first = export_model(path, tmp_path / "out.fcn", request=_request(tmp_path, 50.0))
    forced = replace(_request(tmp_path, 50.0), force=True)
    second = export_model(path, tmp_path / "out.fcn", request=forced, on_step=said.append)

    artifact = Artifact.open(tmp_path / "out.fcn")
    assert artifact.variant(Precision.INT8).file == "model.int8.onnx"
    assert {entry.backend for entry in artifact.variant(Precision.INT8).fidelity} == {
        "openvino",
        "onnxruntime",
    }
    table = json.loads(artifact.read(TABLE_NAME))
    figures = first.file_of(Precision.INT8).figures
    assert table["method"] == figures["method"]
    assert figures["calibration"]["used"] == 16
    assert figures["search"]["kept"] == []
    # the second export found the first one's ranges, and so made the same graph
    assert any("same graph, same images" in event.detail for event in said)
    assert not any("histograms" in event.detail for event in said)
    assert second.file_of(Precision.INT8) == first.file_of(Precision.INT8)
    # weights are a quarter; names, biases and scales are not
    fp32 = first.file_of(Precision.FP32).size_bytes
    assert first.file_of(Precision.INT8).size_bytes < 0.5 * fp32
    assert not list(tmp_path.glob(".*search*"))


def test_budget_that_cannot_hold_leaves_no_artifact(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _write(tmp_path, _model_with_outliers(rng))

    with pytest.raises(BudgetError, match=r"int8 loses .* even with \d layers"):
        export_model(path, tmp_path / "out.fcn", request=_request(tmp_path, 0.0))

    assert not (tmp_path / "out.fcn").exists()


def test_classes_that_calibration_hardly_saw_are_named_as_the_checkpoint_names_them(
    tmp_path: Path,
) -> None:
    names = ("road", "kerb", "car", "tree")
    classes = tuple(ClassInfo(name, (index, 0, 0)) for index, name in enumerate(names))
    network = seeded(lambda: FCN(Backbone("vgg11", 0.125, fc_width=8), "32s", 4))
    mean_and_std = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "rgb")
    save_checkpoint(network, tmp_path / "model.pt", preprocess=mean_and_std, classes=classes)
    cv2.imwrite(str(tmp_path / "only.png"), np.zeros((64, 64, 3), np.uint8))
    request = ExportRequest(
        precisions=("int8",),
        calibrate=tmp_path / "only.png",
        engine="none",
        size=(64, 64),
        min_size=(64, 64),
        max_size=(128, 128),
    )

    report = export_model(tmp_path / "model.pt", tmp_path / "model.fcn", request=request)

    summary, hardly_seen = (
        next(note for note in report.notes if text in note) for text in ("predicted:", "hardly saw")
    )
    assert [name for name in names if f"{name} " in summary]
    assert [name for name in names if f"{name} (" in hardly_seen]


def test_int8_without_images_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"int8 takes its ranges from images.*--calibrate PATH"):
        ExportRequest(precisions=("int8",))


def test_search_is_shown_as_a_table_of_points(capsys: pytest.CaptureFixture[str]) -> None:
    from fcn_export.terminal import search_table

    search = {
        "kept": ["victim"],
        "pareto": [
            {"kept": [], "estimated_cost": 0.25, "miou_drop": 41.2, "disagreement": 0.3},
            {"kept": ["victim"], "estimated_cost": 0.5, "miou_drop": 0.4, "disagreement": 0.01},
        ],
    }

    Console(width=120).print(search_table("int8", search))

    shown = capsys.readouterr().out
    assert "int8: layers in fp32, against the mean IoU that is lost" in shown
    assert [cell.strip() for cell in shown.splitlines()[-2].split("│")[1:-1]] == [
        "victim (chosen)",
        "50%",
        "0.40",
        "1.000%",
    ]


@pytest.mark.cpu_abilities
def test_fp16_that_loses_too_much_keeps_the_layers_that_do(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="stem")
    graph.op("Relu", "stem", out="stem_relu")
    graph.conv("stem_relu", (8, 8), out="middle")
    # at 4096, fp16 tells numbers apart that differ by 4
    shift = graph.constant("shift", np.float32(4096))
    graph.op("Add", "middle", shift, out="shifted")
    graph.op("Sub", "shifted", shift, out="back")
    graph.conv("back", (8, 8), out="after")
    graph.op("Relu", "after", out="after_relu")
    path = _write(tmp_path, graph.model(graph.conv("after_relu", (8, 4), out="last", kernel=1)))
    request = replace(_request(tmp_path, 1.0), precisions=("fp16",), calibrate=None)

    report = export_model(path, tmp_path / "out.fcn", request=request)

    search = report.file_of(Precision.FP16).figures["search"]
    assert search["kept"] == ["middle"]
    assert search["pareto"][0]["miou_drop"] > 1.0
    assert {"middle", "shifted", "back"} <= set(
        report.file_of(Precision.FP16).figures["fp32_nodes"]
    )
