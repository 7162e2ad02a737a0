"""An export with plans: which are built, what is said where none are, and what is left behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import helper, numpy_helper

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import BuildError, ProfileError, UnsupportedOpError
from fcn_deploy.names import Precision
from fcn_export import plans
from fcn_export.cli import main
from fcn_export.export import ExportReport, ExportRequest, export_model
from fcn_export.steps import StepEvent
from fcn_export.terminal import show_report
from tests.export.engine_graphs import single_op, write

SIZES = ("--size", "48x56", "--min-size", "32x32", "--max-size", "96x96")


def request(**options: Any) -> ExportRequest:
    usual = {"size": (48, 56), "min_size": (32, 32), "max_size": (96, 96)}
    return ExportRequest(**{"engine": "tensorrt-rtx", **usual, **options})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network of one convolution, from float32 images to scores."""
    return write(single_op(_convolution("labels"), [_weights()]), tmp_path, "net.onnx")


@pytest.fixture
def unbuildable(tmp_path: Path) -> Path:
    """A network that runs on CPUs, with a resize that TensorRT does not know."""
    graph = single_op(_convolution("small"), [_weights()], check=False)
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph.graph.initializer.append(scales)
    graph.graph.node.append(
        helper.make_node(
            "Resize", ["small", "", "scales"], ["labels"], name="up", mode="linear", antialias=1
        )
    )
    return write(graph, tmp_path, "net.onnx")


def _convolution(output: str) -> Any:
    return helper.make_node("Conv", ["x", "w"], [output], name="conv", strides=[2, 2], pads=[1] * 4)


def _weights() -> Any:
    values = np.random.default_rng(5).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return numpy_helper.from_array(values, "w")


def test_every_precision_gets_its_plan_and_its_entry(model: Path, tmp_path: Path) -> None:
    report = export_model(model, tmp_path / "net.fcn", request=request())

    artifact = Artifact.open(report.path)
    built = [entry for entry in artifact.manifest.variants if entry.backend is not None]
    assert [entry.file for entry in built] == [
        "model.fp32.tensorrt-rtx.plan",
        "model.fp16.tensorrt-rtx.plan",
    ]
    for entry, graph in zip(built, ("model.onnx", "model.fp16.onnx"), strict=True):
        assert artifact.read(entry.file)[:4] == b"vtrt"
        assert entry.backend == "tensorrt-rtx"
        assert entry.compute_capabilities == ("8.6", "8.9")
        assert entry.profiles == (artifact.manifest.shapes,)
        assert entry.library_version == artifact.manifest.provenance["tensorrt-rtx"]
        assert not entry.version_compatible
        assert entry.graph == graph
        assert entry.graph_sha256 == hashlib.sha256(artifact.read(graph)).hexdigest()
    assert artifact.variant(Precision.FP16).file == "model.fp16.onnx"


def test_report_tells_what_was_built_and_in_which_types(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_model(
        model, tmp_path / "net.fcn", request=request(compute_capabilities=("12.0",))
    )

    full, half = json.loads((report.path / "report.json").read_text())["plans"]
    assert full["layer_shares"] == {"float32": 1.0}
    assert half["layer_shares"] == {"float16": 1.0}
    assert half["compute_capabilities"] == ["12.0"]
    assert half["size_bytes"] == (report.path / half["name"]).stat().st_size
    assert half["seconds"] > 0
    show_report(report)
    assert "tensorrt-rtx fp16" in capsys.readouterr().out


def test_only_precisions_that_were_asked_for_get_a_plan(model: Path, tmp_path: Path) -> None:
    report = export_model(model, tmp_path / "net.fcn", request=request(precisions=("fp16",)))

    assert [plan.precision for plan in report.plans] == [Precision.FP16]


def test_sizes_of_images_decide_the_profiles(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index, (height, width) in enumerate([(40, 90), (40, 90), (90, 40)]):
        cv2.imwrite(str(images / f"{index}.png"), np.zeros((height, width, 3), np.uint8))

    report = export_model(
        model, tmp_path / "net.fcn", request=request(profiles=images, precisions=("fp32",))
    )

    (entry,) = (v for v in Artifact.open(report.path).manifest.variants if v.backend)
    assert entry.profiles == (
        ShapeRange((1, 40, 90), (1, 40, 90), (8, 40, 90)),
        ShapeRange((1, 90, 40), (1, 90, 40), (8, 90, 40)),
    )
    assert [proposal.images for proposal in report.plans[0].proposals] == [2, 1]
    assert "Profile 1: 40x90 to 40x90, usually 40x90: 2 images, 0% padding." in report.notes


def test_image_that_no_plan_would_take_stops_the_export(model: Path, tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    cv2.imwrite(str(image), np.zeros((300, 40, 3), np.uint8))

    with pytest.raises(ProfileError, match=r"an image is 300x40.*--max-size"):
        export_model(model, tmp_path / "net.fcn", request=request(profiles=image))
    assert not (tmp_path / "net.fcn").exists()


def test_plan_that_was_named_and_cannot_be_built_fails_the_export(
    unbuildable: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedOpError, match=r"'up' \(Resize\)|Resize 'up'"):
        export_model(unbuildable, tmp_path / "net.fcn", request=request())
    assert list(tmp_path.iterdir()) == [unbuildable]


def test_plan_that_auto_cannot_build_is_noted_and_the_rest_is_there(
    unbuildable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_model(unbuildable, tmp_path / "net.fcn", request=request(engine="auto"))

    assert {file.name for file in report.path.iterdir()} == {
        "manifest.json", "model.onnx", "model.fp16.onnx", "report.json",
    }  # fmt: skip
    assert all(plan.failure for plan in report.plans)
    assert any("'model.fp16.tensorrt-rtx.plan' was not built:" in note for note in report.notes)
    show_report(report)
    assert "not built" in capsys.readouterr().out


def test_auto_without_a_library_says_what_to_install(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "installed", lambda library: False)

    status = main([str(model), *SIZES])

    out = capsys.readouterr().out
    assert status == 0
    assert "pip install 'fcn-deploy[rtx]' builds plans for NVIDIA GPUs" in out.replace("\n", " ")
    assert list(model.with_suffix(".fcn").glob("*.plan")) == []


def test_auto_takes_tensorrt_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "installed", lambda library: True)

    monkeypatch.setattr(plans, "nvidia_gpus", lambda: ("RTX 4090",))
    with_gpu = plans.find_library()
    monkeypatch.setattr(plans, "nvidia_gpus", tuple)
    without = plans.find_library()

    assert (with_gpu, without) == ("tensorrt", "tensorrt-rtx")


def test_auto_with_a_library_that_does_not_load_says_why(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11 is missing')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(plans, "nvidia_gpus", lambda: ("RTX 4090",))

    report = export_model(model, tmp_path / "net.fcn", request=request(engine="auto"))

    assert report.plans == ()
    assert any("libnvinfer.so.11 is missing" in note for note in report.notes)


def test_command_builds_plans_and_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(model), *SIZES, "--compute-capability", "7.5,8.9", "--no-tf32"])

    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("plan fp16")]
    assert status == 0
    assert len(lines) == 1
    assert "model.fp16.tensorrt-rtx.plan" in lines[0]
    assert "for 7.5, 8.9, 1 profile, layers 100% float16" in lines[0]
    assert "tensorrt-rtx fp32" in captured.out


def test_interrupt_during_a_plan_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    def interrupt(event: StepEvent) -> None:
        if event.step == "plan fp16" and "%" in event.detail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(model, tmp_path / "net.fcn", request=request(), on_step=interrupt)
    assert list(tmp_path.iterdir()) == [model]


def test_option_that_the_library_ignores_is_refused_before_any_work(
    model: Path, tmp_path: Path
) -> None:
    events: list[StepEvent] = []

    with pytest.raises(BuildError, match="takes no --version-compatible"):
        export_model(
            model,
            tmp_path / "net.fcn",
            request=request(version_compatible=True),
            on_step=events.append,
        )
    assert events == []


def test_none_builds_none_and_says_nothing(model: Path, tmp_path: Path) -> None:
    report: ExportReport = export_model(model, tmp_path / "net.fcn", request=request(engine="none"))

    assert report.plans == ()
    assert [note for note in report.notes if "engine" in note or "plan" in note] == []


def test_int8_plan_is_built_of_the_int8_graph(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(9)
    for index in range(3):
        frame = rng.integers(0, 256, (48, 56, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{index}.png"), frame)

    report = export_model(
        model,
        tmp_path / "net.fcn",
        request=request(precisions=("int8",), calibrate=images),
    )

    artifact = Artifact.open(report.path)
    (plan,) = report.plans
    (entry,) = (v for v in artifact.manifest.variants if v.backend)
    assert plan.layer_shares == {"int8": 1.0}
    assert entry.graph == "model.int8.onnx"
    assert entry.graph_sha256 == hashlib.sha256(artifact.read("model.int8.onnx")).hexdigest()
