"""The command from end to end on a tiny network: tables, files, gates, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fcn_bench.cli import main
from fcn_deploy import Segmenter
from tests.bench.conftest import TinyModel
from tests.deploy.graphs import segmentation_graph

QUICK = ["--rounds", "2", "--min-duration", "0.1", "--warmup", "1"]
FACTORY = ["--arch", TinyModel.arch]


@pytest.fixture(scope="session")
def whole_run(exported: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of everything, which several tests look at."""
    folder = tmp_path_factory.mktemp("reports")
    names = {name: str(folder / f"report.{name}") for name in ("json", "csv", "html", "markdown")}
    command = [sys.executable, "-m", "fcn_bench.cli", "tiny.fcn", *FACTORY, *QUICK]
    command += ["--eval", "images", "labels", "--assert", "miou_drop<=5"]
    for name, file in names.items():
        command += [f"--{name}", file]
    run = subprocess.run(
        command,
        cwd=exported.folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    texts = {name: Path(file).read_text() for name, file in names.items() if run.returncode == 0}
    return {"run": run, "folder": folder, **texts}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


def test_everything_at_once_ends_well(whole_run: dict[str, Any]) -> None:
    run = whole_run["run"]

    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "latency, frame (frame in, labels out), 64x96" in run.stdout
    assert "assert miou_drop<=5: holds for" in run.stdout
    assert "SUSPECT" in run.stdout  # two rounds are too few samples to be believed


def pooled_mean_iou(tiny: TinyModel) -> float:
    """Count the mean IoU of the labelled images by hand."""
    found, truth = [], []
    with Segmenter.open(tiny.artifact, backend="onnxruntime", precision="fp32") as segmenter:
        for path in sorted(tiny.images.iterdir()):
            frame = np.asarray(cv2.imread(str(path)))
            labels = cv2.imread(str(tiny.labels / path.name), cv2.IMREAD_GRAYSCALE)
            found.append(segmenter(frame).labels.ravel())
            truth.append(np.asarray(labels).ravel())
    ours, theirs = np.concatenate(found), np.concatenate(truth)
    shares = [
        np.count_nonzero((ours == label) & (theirs == label))
        / np.count_nonzero((ours == label) | (theirs == label))
        for label in np.unique(theirs)
    ]
    return float(np.mean(shares))


def test_every_row_is_there_with_what_it_must_have(
    whole_run: dict[str, Any], tiny: TinyModel
) -> None:
    rows = json.loads(whole_run["json"])["rows"]
    truth = pooled_mean_iou(tiny)

    modes = {(row["backend"], row["mode"], row["scenario"], row["scope"]) for row in rows}
    for scenario in ("latency", "throughput"):
        for scope in ("compute", "frame"):
            assert ("torch", "eager", scenario, scope) in modes
            assert ("torch", "channels_last", scenario, scope) in modes
            assert ("openvino", scenario, scope) in {(b, s, c) for b, _, s, c in modes}
            assert ("onnxruntime", scenario, scope) in {(b, s, c) for b, _, s, c in modes}
    for row in rows:
        assert (row["height"], row["width"], row["batch"]) == (64, 96, 1)
        assert row["latency_ms"]["n"] >= 4
        assert row["throughput_fps"] > 0
        assert row["peak_rss_bytes"] > 50e6
        assert row["fidelity"]["label_agreement"] > 0.9
        if row["precision"] == "fp32":
            assert row["fidelity"]["miou"] == pytest.approx(truth, abs=0.002)
            assert row["fidelity"]["label_agreement"] > 0.999
            assert abs(row["fidelity"]["miou_drop"]) < 0.1
        assert (row["speedup"] is None) == (row["mode"] == "eager")


def test_frames_take_longer_than_the_network_in_them(whole_run: dict[str, Any]) -> None:
    rows = json.loads(whole_run["json"])["rows"]
    latency = {
        (row["backend"], row["precision"], row["mode"], row["scope"]): row["latency_ms"]["min"]
        for row in rows
        if row["scenario"] == "latency"
    }

    for backend, precision, mode, scope in latency:
        if scope == "frame":
            same = (backend, precision, mode)
            assert latency[*same, "frame"] > latency[*same, "compute"]


def test_report_says_what_was_measured(whole_run: dict[str, Any]) -> None:
    document = json.loads(whole_run["json"])

    assert document["schema_version"] == 1
    assert document["complete"] is True
    assert document["target"]["kind"] == "artifact"
    assert document["baseline"]["name"] == "tiny.pt"
    assert document["target"]["sha256"] == document["baseline"]["sha256"]
    assert document["environment"]["libraries"]["torch"]
    assert "| torch | fp32 | eager |" in whole_run["markdown"]
    assert len(whole_run["csv"].splitlines()) == len(document["rows"]) + 1


def test_json_on_stdout_is_all_there_is_and_a_failed_gate_exits_1(
    tiny: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend", "openvino", "--precision", "fp32", "--scenario", "latency"]

    status = main([str(tiny.artifact), *options, *QUICK, "--json", "-", "--assert", "p50_ms<0"])

    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert status == 1
    assert {row["backend"] for row in document["rows"]} == {"openvino"}
    assert document["baseline"] is None
    assert "code that a file names is not run unasked" in document["notes"][0]
    assert "assert p50_ms<0: FAILED" in captured.err


def test_comparison_with_a_faster_past_exits_1(
    tiny: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend", "openvino", "--precision", "fp32", "--scenario", "latency", *QUICK]
    assert main([str(tiny.artifact), *options, "-q", "--json", str(tmp_path / "old.json")]) == 0
    document = json.loads((tmp_path / "old.json").read_text())
    for row in document["rows"]:
        row["latency_ms"]["p50"] /= 1000
    (tmp_path / "old.json").write_text(json.dumps(document))

    status = main([str(tiny.artifact), *options, "--compare", str(tmp_path / "old.json")])

    assert status == 1
    assert "FAILED: 10 % are allowed" in capsys.readouterr().out


def test_bare_graph_runs_on_images_of_another_size(
    tiny: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(segmentation_graph())
    options = ["--input", str(tiny.images), "--size", "32x48", "--batch", "1,2"]
    options += ["--backend", "openvino", "--precision", "fp32"]

    status = main([str(path), *options, *QUICK, "--scenario", "latency", "--csv", "-"])

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert {tuple(line.split(",")[5:8]) for line in lines[1:]} == {
        ("1", "32", "48"),
        ("2", "32", "48"),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "images"], "'images' is a folder; a report is a file"),
        (["--assert", "stream.p95_ms<=40"], "is of the scenario stream; scenarios are latency"),
        (["--assert", "p95_ms<=40", "--scenario", "stream"], "Write stream.p95_ms"),
        (["--assert", "miou>=0.5"], "ground truth, which was not given. It needs --eval"),
        (["--max-regression", "5"], "--max-regression 5 has nothing to compare with"),
        (["--rate", "25"], "a rate of 25 frames/s is of the scenario stream"),
        (["--scenario", "stream", "--rate", "0"], "rate is 0 frames/s; it must be above 0"),
        (["--scenario", "stream", "--batch", "1,2"], "the scenario stream needs batch 1"),
        (["--assert", "fast"], "cannot read the assertion 'fast'"),
        (["--compare", "gone.json"], "cannot read the report 'gone.json'"),
        (["--json", "-", "--csv", "-"], "only one of --json, --csv, --html and --markdown"),
        (["--json", "gone/report.json"], "there is no folder 'gone'"),
        (["--baseline", "gone.pt"], "there is no baseline model 'gone.pt'"),
        (["--mean", "0,0,0"], "says itself what its network expects"),
        (["--precision", "int8"], "nothing here runs"),
        (["--backend", "tvm"], "there is no backend 'tvm'"),
        (["--compile"], "--compile needs a PyTorch baseline"),
        (["--eval", "images", "gone"], "there is no folder 'gone'"),
        (["--input", "gone"], "there is no input 'gone'"),
        (["--warmup", "-1"], "warmup is -1"),
        (["--min-duration", "-1"], "min_duration is -1.0"),
        (["--min-duration", "inf"], "min_duration is inf"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_status_2(
    tiny: TinyModel, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    status = main([str(tiny.artifact), *options])

    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--rounds", "0"],
        ["--size", "512"],
        ["--size", ""],
        ["--precision", ","],
        ["--batch", "x"],
        ["--color", "hsv"],
        ["--max-regression", "-5"],
    ],
)
def test_malformed_option_has_status_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["model.fcn", *options])

    assert capsys.readouterr().err.startswith("fcn-bench: argument --")


def test_frames_that_arrive_have_rows_of_both_sides(
    tiny: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (96, 64))
    for _ in range(3):
        writer.write(np.zeros((64, 96, 3), np.uint8))
    writer.release()
    options = ["--scenario", "stream", "--precision", "fp32", "--backend", "onnxruntime"]

    status = main(["tiny.fcn", *FACTORY, *QUICK, *options, "--input", str(video), "--json", "-"])

    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert document["environment"]["stream_rate_fps"] == 50.0
    rows = {(row["backend"], row["mode"]): row for row in document["rows"]}
    assert {("torch", "eager"), ("onnxruntime", "1 stream")} <= rows.keys()
    assert {(row["scenario"], row["scope"]) for row in rows.values()} == {("stream", "stream")}
    ours = rows["onnxruntime", "1 stream"]
    assert ours["latency_ms"]["n"] == 2 * 2  # rounds of 0.05 s: two frames each
    # on a machine that is busy, one of the two may not keep up with 50 frames a second
    overloaded = any("cannot keep up" in note for note in ours["notes"])
    assert (ours["speedup"] or {}).get("against") == (None if overloaded else "eager")
    assert any("of 4 frames at 50 a second" in note for note in ours["notes"])


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom fcn_bench.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'cv2', 'rich'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )

    run = subprocess.run(
        [sys.executable, "-c", code],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "TARGET" in run.stdout


def test_package_gives_its_names_without_torch() -> None:
    code = (
        "import sys, fcn_bench\n"
        "[getattr(fcn_bench, name) for name in fcn_bench.__all__]\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )

    run = subprocess.run(
        [sys.executable, "-c", code],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
