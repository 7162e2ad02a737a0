"""fcn-doctor: what it finds here, what it says of a model, and how it ends."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import parser

from fcn_deploy import __version__, doctor
from fcn_deploy.artifact.folder import ArtifactWriter
from fcn_deploy.artifact.manifest import (
    ClassInfo,
    Fidelity,
    Manifest,
    Preprocess,
    SeenByNetwork,
    Source,
    TensorInfo,
    Variant,
)
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import backend_names, plan_backend_names
from fcn_deploy.cli.doctor import main
from fcn_deploy.errors import ExecutionError
from fcn_deploy.machine import usable_cores
from fcn_deploy.names import Precision
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.tiling.self_test import TilingError

# the brightest channel of the frame is the label
GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
brightest (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
{
    values = Cast<to = 1>(image)
    best = ArgMax<axis = -1, keepdims = 0>(values)
    labels = Cast<to = 2>(best)
}
"""

# 1 where the blue channel is above the frame's mean
ABOVE_MEAN = """
<ir_version: 10, opset_import: ["" : 21]>
above (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
<int64[1] blue = {0}, int64[3] sides = {1, 2, 3}, int64[1] last = {3}>
{
    values = Cast<to = 1>(image)
    one = Gather<axis = -1>(values, blue)
    mean = ReduceMean<keepdims = 1>(one, sides)
    above = Greater(one, mean)
    flat = Squeeze(above, last)
    labels = Cast<to = 2>(flat)
}
"""

MANIFEST = Manifest(
    inputs=(TensorInfo("image", "uint8", (None, None, None, 3), "NHWC", "bgr"),),
    outputs=(TensorInfo("labels", "uint8", (None, None, None), "NHW"),),
    shapes=ShapeRange((1, 8, 8), (1, 64, 64), (1, 128, 128)),
    preprocess=Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bgr"),
    classes=(
        ClassInfo("blue", (0, 0, 255)),
        ClassInfo("green", (0, 255, 0)),
        ClassInfo("red", (255, 0, 0)),
    ),
    variants=(
        Variant(
            "model.onnx",
            Precision.FP32,
            fidelity=(
                Fidelity("openvino", Precision.FP32, 1.0, 0.0, miou=0.75, miou_drop=0.0),
                Fidelity(
                    *("openvino", Precision.BF16, 0.5, 0.0),
                    worst_class_iou=0.25,
                    images=12,
                    status="broken",
                ),
            ),
        ),
    ),
    source=Source("model.pt", None, None),
    provenance={},
    receptive_field=SeenByNetwork((1, 1), (0, 0), (1, 1), (0, 0), (0, 0), (1, 1), ("it blushes",)),
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "brightest.fcn"
    with ArtifactWriter(path) as writer:
        writer.add("model.onnx", parser.parse_model(GRAPH).SerializeToString())
        writer.commit(MANIFEST)
    return path


@pytest.fixture
def without_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes `import` fail, as on a machine without them
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main([*arguments, "--json", "-"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, document


def test_json_holds_machine_backends_and_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    status, document = run_json(capsys)

    assert status == 0
    assert (document["schema_version"], document["version"]) == (1, __version__)
    assert document["machine"]["usable_cores"] == usable_cores()
    assert [backend["name"] for backend in document["backends"]] == [
        *backend_names(),
        *plan_backend_names(),
    ]
    graphs = document["backends"][: len(backend_names())]
    assert all("fp32" in backend["precisions"] for backend in graphs)
    assert {"numpy", "torch", "tensorrt"} <= {
        status["library"]["distribution"] for status in document["libraries"]
    }
    assert document["model"] is None


def test_json_is_written_to_a_file_beside_the_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = main(["--json", str(tmp_path / "doctor.json")])

    assert status == 0
    assert "Backends" in capsys.readouterr().out
    assert json.loads((tmp_path / "doctor.json").read_text())["healthy"] is True


def test_report_names_what_decides_speed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])

    report = capsys.readouterr().out
    assert f"{usable_cores()} usable" in report
    assert "FFmpeg in cv2" in report
    for line in ("CPU", "instructions", "threads", "openvino", "onnxruntime"):
        assert f"  {line} " in report


def test_model_is_described_as_the_segmenter_would_open_it(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    with Segmenter.open(artifact) as segmenter:
        expected = (segmenter.backend, segmenter.precision, segmenter.reason, segmenter.head)

    status, document = run_json(capsys, str(artifact))

    model = document["model"]
    assert status == 0
    assert (model["backend"], model["precision"], model["reason"], model["head"]) == expected
    assert model["classes"] == ["blue", "green", "red"]
    assert [variant["file"] for variant in model["variants"]] == ["model.onnx"]
    assert model["variants"][0]["fidelity"][0]["miou"] == 0.75


def test_what_a_network_sees_is_the_manifests_account(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    _, document = run_json(capsys, str(artifact))
    main([str(artifact)])

    assert document["model"]["receptive_field"]["stride"] == [1, 1]
    report = capsys.readouterr().out
    assert "1x1 px a score, in steps of 1x1 px, the first around pixel 0x0; it blushes" in report


def test_a_bare_graph_is_asked_itself_what_it_sees(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(GRAPH).SerializeToString())

    _, document = run_json(capsys, str(path))

    assert document["model"]["receptive_field"]["size"] == [1, 1]


def test_tiles_are_tried_and_the_labels_that_differ_counted(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    _, document = run_json(capsys, str(artifact))
    main([str(artifact)])

    tiling = document["model"]["tiling"]
    height, width = tiling["size"]
    assert tiling["differing_labels"] == 0
    assert tiling["tiles"] == [3, 3]
    assert tiling["differs"] is None
    assert document["model"]["tiling_untried"] is None
    assert (
        f"tiles                   0 of {height * width} labels differ from the whole frame's "
        f"({height}x{width} in 3x3 tiles)\n"
    ) in capsys.readouterr().out


def test_a_network_that_reads_the_whole_frame_is_said_to_differ_in_tiles(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mean.onnx"
    path.write_bytes(parser.parse_model(ABOVE_MEAN).SerializeToString())

    status, document = run_json(capsys, str(path))
    main([str(path)])

    assert status == 0
    assert document["model"]["tiling"]["differing_labels"] > 0
    assert "ReduceMean" in document["model"]["tiling"]["differs"]
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("  tiles "))
    assert f" {document['model']['tiling']['differing_labels']} of " in line
    assert line.endswith("tiles); " + document["model"]["tiling"]["differs"])


def test_tiles_that_break_the_promise_are_shown_as_a_fault(
    capsys: pytest.CaptureFixture[str], artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = TilingError((96, 96), (3, 3), 90, 1 - 90 / 96**2, 0.25, None, 1e-4)
    monkeypatch.setattr(doctor, "tiling_self_test", lambda segmenter, **_: found)

    main([str(artifact)])

    assert (
        "90 of 9216 labels differ from the whole frame's (96x96 in 3x3 tiles), which they must "
        "not: report it, and run large frames whole, with a larger tile_pixels"
    ) in capsys.readouterr().out


def test_tiles_that_differ_by_rounding_are_no_fault(
    capsys: pytest.CaptureFixture[str], artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = TilingError((96, 96), (3, 3), 1, 1 - 1 / 96**2, 2e-7, None, 1e-4)
    monkeypatch.setattr(doctor, "tiling_self_test", lambda segmenter, **_: found)

    main([str(artifact)])

    assert "(96x96 in 3x3 tiles): near ties, rounded in another order" in capsys.readouterr().out


def test_a_network_of_one_size_is_never_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "fixed.onnx"
    fixed = GRAPH.replace("N, H, W", "1, 32, 32")
    path.write_bytes(parser.parse_model(fixed).SerializeToString())

    _, document = run_json(capsys, str(path))
    main([str(path)])

    assert document["model"]["tiling"] is None
    reason = "the network takes frames of one size, which are never cut"
    assert document["model"]["tiling_untried"] == reason
    assert f"tiles                   not tried: {reason}" in capsys.readouterr().out


def test_a_network_that_fails_in_tiles_is_still_described(
    capsys: pytest.CaptureFixture[str], artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(segmenter: Segmenter, **_: object) -> TilingError:
        raise ExecutionError("the network gave NaN.")

    monkeypatch.setattr(doctor, "tiling_self_test", fail)

    status, document = run_json(capsys, str(artifact))

    assert status == 0
    assert document["model"]["tiling_untried"] == "the network gave NaN."
    assert document["model"]["backend"] == "openvino"


def test_plan_is_listed_with_what_built_it_and_for_which_gpus(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = Variant(
        "model.fp16.tensorrt-rtx.plan",
        Precision.FP16,
        backend="tensorrt-rtx",
        compute_capabilities=("8.6", "8.9"),
        library_version="1.7.1.116",
    )
    path = tmp_path / "brightest.fcn"
    with ArtifactWriter(path) as writer:
        writer.add("model.onnx", parser.parse_model(GRAPH).SerializeToString())
        writer.add(plan.file, b"plan")
        writer.commit(replace(MANIFEST, variants=(*MANIFEST.variants, plan)))

    main([str(path)])
    report = capsys.readouterr().out
    status, document = run_json(capsys, str(path))

    assert "a plan of tensorrt-rtx 1.7.1.116, for GPUs of compute capability 8.6, 8.9" in report
    assert status == 0
    assert document["model"]["variants"][1]["compute_capabilities"] == ["8.6", "8.9"]


def test_report_of_a_model_says_why_and_how_well(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    main([str(artifact)])

    report = capsys.readouterr().out
    assert "runs on                 openvino in fp32" in report
    assert "because" in report
    assert (
        "at export, openvino bf16: 50.0000% of PyTorch's labels, IoU 0.2500 of the worst class, on "
        "12 images (broken)" in report
    )
    assert "mean IoU 0.7500" in report


def test_bare_onnx_file_is_described_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "brightest.onnx"
    path.write_bytes(parser.parse_model(GRAPH).SerializeToString())

    status, document = run_json(capsys, str(path))

    assert status == 0
    assert document["model"]["precision"] == "fp32"
    assert document["model"]["variants"] == []


@pytest.mark.usefixtures("without_backends")
def test_machine_without_backends_gets_the_command_that_installs_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main([])

    report = capsys.readouterr().out
    assert status == 1
    assert "no backend can run here: pip install 'fcn-deploy[cpu]'" in report


@pytest.mark.usefixtures("without_backends")
def test_model_that_nothing_here_can_run_is_still_described(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    status, document = run_json(capsys, str(artifact))

    assert status == 1
    assert document["healthy"] is False
    assert "fcn-deploy[cpu]" in document["model"]["problem"]
    assert document["model"]["classes"] == ["blue", "green", "red"]


def test_library_that_does_not_load_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "openvino", raising=False)

    (status, *_) = doctor.diagnose().backends

    assert status.problem == ("installed, but it cannot be imported: libtbb.so.12: no such file")


def test_a_plan_by_itself_takes_trust_and_is_then_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(b"code")

    refused = main([str(plan)])
    refusal = capsys.readouterr().err
    status = main([str(plan), "--trust-code"])

    assert (refused, status) == (2, 1)
    assert "Run it with --trust-code" in refusal
    assert "no backend of plans can run here: TensorRT is not" in capsys.readouterr().out


def test_missing_model_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = main([str(tmp_path / "nothing.fcn")])

    streams = capsys.readouterr()
    assert status == 2
    assert streams.out == ""
    assert streams.err.startswith("fcn-doctor: ")
    assert streams.err.count("\n") == 1


def test_thread_settings_of_the_environment_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    main([])

    assert "by default; set: OMP_NUM_THREADS=3" in capsys.readouterr().out


def test_telemetry_is_said_to_be_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)

    main([])

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["telemetry", "onnxruntime:", "off"] in lines
    assert ["telemetry", "openvino:", "off"] in lines


def test_the_users_own_setting_of_telemetry_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")

    main([])

    assert "onnxruntime: as set: ORT_DISABLE_TELEMETRY=0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("libavcodec", "warned"),
    [("62.28.101", True), ("62.28.102", False), ("63.1.100", False), (None, False)],
)
def test_ffmpeg_with_a_known_hole_is_warned_of(libavcodec: str | None, warned: bool) -> None:
    decoders = (doctor.Decoder("cv2", libavcodec, None),)

    advice = doctor.diagnose(decoders=decoders).advice

    assert any("read no video from strangers with cv2" in text for text in advice) is warned
