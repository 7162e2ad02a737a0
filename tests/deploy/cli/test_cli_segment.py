from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy.backends import backend_names, plan_backend_names
from fcn_deploy.cli import segment
from fcn_deploy.cli.run import ACTIVATIONS
from fcn_deploy.names import NETWORK_COLORS, Precision
from fcn_deploy.opening.options import ASKED_ACTIVATIONS
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.video.pipeline import POLICIES
from fcn_deploy.video.sinks import VIEWS
from fcn_deploy.video.sources import read_image
from fcn_deploy.video.writers import WriterName
from tests.deploy.artifacts import write_artifact
from tests.deploy.clips import (
    decode_all,
    numbered_frame,
    read_png,
    wait_until,
    write_clip,
    write_image,
)
from tests.deploy.graphs import segmentation_graph
from tests.deploy.streams import black_hole

ROOT = Path(__file__).parents[3]
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
from fcn_deploy.cli.segment import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(segmentation_graph(classes=4))
    return path


@pytest.fixture
def long_clip(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Minutes of video, made in no time: two pictures in turn."""
    path = tmp_path / "long.mjpeg"
    pair = b""
    for _ in range(2):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        ok, jpeg = cv2.imencode(".jpg", cv2.resize(coarse, (320, 240)))
        assert ok
        pair += jpeg.tobytes()
    path.write_bytes(pair * 3000)
    return path


def run(model: Path, *arguments: object) -> int:
    return segment.main(
        [*map(str, arguments), "-m", str(model), "--backend", "onnxruntime"],
    )


def started(model: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, *map(str, arguments), "-m", str(model)]
    return subprocess.Popen(
        [*command, "--backend", "onnxruntime"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_folder_gives_one_file_of_class_ids_an_image(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(1)
    paths = [
        write_image(
            tmp_path / "scans" / f"{name}.png", rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
        )
        for name in ("a", "b")
    ]

    status = run(model, tmp_path / "scans", "-o", tmp_path / "out", "--view", "labels")

    assert status == 0
    with Segmenter.open(model, backend="onnxruntime") as segmenter:
        for path in paths:
            expected = segmenter(read_image(path)).labels
            assert np.array_equal(read_png(tmp_path / "out" / path.name), expected)
    assert "2 images: 2 frames at" in capsys.readouterr().out


def test_a_video_gives_a_video_and_a_report(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=30)

    status = run(
        model, clip, "-o", tmp_path / "night.mp4", "--json", tmp_path / "r.json", "--max-frames", 20
    )

    document = json.loads((tmp_path / "r.json").read_text())
    assert status == 0
    assert len(decode_all(tmp_path / "night.mp4")) == 20
    assert (document["captured"], document["delivered"], document["dropped"]) == (20, 20, {})
    assert document["fps"] > 0
    assert document["latency_ms"]["n"] == 20
    assert document["outputs"] == [str(tmp_path / "night.mp4")]
    assert document["complete"] is True
    assert document["sources"][0]["encoder"] == "opencv/mp4v"


def test_several_sources_add_up_in_one_report_on_stdout(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=5)
    image = write_image(tmp_path / "x.jpg", numbered_frame(0))

    status = run(model, clip, image, "-o", tmp_path / "out", "--json", "-")

    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert document["delivered"] == 6
    assert [source["delivered"] for source in document["sources"]] == [1, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.mp4", "x.png"]


def test_a_source_that_is_called_partial_is_kept(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "take.partial.avi", frames=5)
    image = write_image(tmp_path / "x.partial.png", numbered_frame(0))
    before = [clip.read_bytes(), image.read_bytes()]
    write_image(tmp_path / "x.jpg", numbered_frame(1))

    statuses = [
        run(model, clip, "-o", tmp_path / "take.avi"),
        run(model, tmp_path / "x.jpg", "-o", tmp_path),
    ]

    assert statuses == [0, 0]
    assert len(decode_all(tmp_path / "take.avi")) == 5
    assert [clip.read_bytes(), image.read_bytes()] == before


@pytest.mark.parametrize("spelled", ["take.avi", "./a/../take.avi", "link.avi", "hard.avi"])
def test_no_spelling_of_a_source_is_written_to(
    spelled: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    clip = write_clip(tmp_path / "take.avi", frames=2)
    (tmp_path / "link.avi").symlink_to(clip)
    (tmp_path / "hard.avi").hardlink_to(clip)
    before = clip.read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())

    statuses = [
        run(model, "take.avi", "-o", spelled),
        run(model, "take.avi", "-o", "out", "--json", spelled),
    ]

    assert statuses == [2, 2]
    assert len(re.findall("is the source .*take.avi itself", capsys.readouterr().err)) == 2
    assert clip.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_videos_labels_are_numbered_files(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=3)

    status = run(model, clip, "-o", tmp_path / "out", "--view", "labels", "-q")

    names = sorted(path.name for path in (tmp_path / "out" / "clip").iterdir())
    assert (status, names) == (0, ["000000.png", "000001.png", "000002.png"])


def test_a_shortened_video_is_said_to_end_early(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])

    status = run(model, clip, "-o", tmp_path / "out")

    assert status == 0
    assert re.search(r"clip\.avi: ended early: \d+ of about 60 frames", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4"], r"missing\.mp4 does not exist; expected a video\. Check the path\."),
        (["missing.mp4", "-o", "out.mp4"], r"missing\.mp4 does not exist; expected a video\."),
        (["missing.png"], r"missing\.png does not exist; expected an image\."),
        (["."], r"holds 0 entries, but no image"),
        (["clip.avi", "-o", "out.mp4", "--view", "labels"], "class ids cannot be kept"),
        (["clip.avi", "--alpha", "2"], "'2' is not between 0 and 1"),
        (["clip.avi", "--alpha", "x"], "'x' is not a number"),
        (["clip.avi", "--max-frames", "0"], "'0' is not a positive whole number"),
        (["clip.avi", "--view", "mask"], "invalid choice: 'mask'"),
        (["clip.avi", "--backend", "tvm"], "invalid choice: 'tvm'"),
        ([], "the following arguments are required: SOURCE"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_and_status_2(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    try:
        status: int | str | None = segment.main([*arguments, "-m", str(model)])
    except SystemExit as exit_:  # argparse's own
        status = exit_.code

    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert re.search(message, captured.err)
    assert captured.err.count("\n") == 1


def test_a_missing_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "x.png", numbered_frame(0))

    assert run(tmp_path / "gone.fcn", image, "-o", tmp_path / "out") == 2
    assert "gone.fcn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_by_itself_takes_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(b"code")
    image = write_image(tmp_path / "x.png", numbered_frame(0))
    command = [str(image), "-m", str(plan), "-o", str(tmp_path / "out")]

    refused = segment.main(command)
    refusal = capsys.readouterr().err
    status = segment.main([*command, "--trust-code"])

    assert (refused, status) == (2, 2)
    assert "Run it with --trust-code" in refusal
    assert "no backend of plans can run here: TensorRT is not" in capsys.readouterr().err


def test_what_a_bare_graphs_output_means_can_be_said(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = segmentation_graph(
        classes=1, head="sigmoid", stride=1, layout="NCHW", input_type=TensorProto.FLOAT
    )
    path = tmp_path / "bare.onnx"
    path.write_bytes(graph)
    frame = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", frame)
    usual = [str(tmp_path / "a.png"), "-m", str(path), "--view", "labels", "-q"]
    options = ["--threshold", "0.6", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    options += ["--color", "bgr", "--activation", "sigmoid", "--output-key", "out"]

    assert segment.main([*usual, "-o", str(tmp_path / "out"), *options]) == 0

    half = (0.5, 0.5, 0.5)
    with Segmenter.open(path, mean=half, std=(0.2, 0.2, 0.2), color="bgr") as segmenter:
        expected = segmenter(frame, scores=True).probabilities()[0] > 0.6
    (written,) = (tmp_path / "out").iterdir()
    np.testing.assert_array_equal(read_png(written), expected)
    assert segment.main([*usual, "-o", str(tmp_path / "b"), "--activation", "softmax"]) == 2
    assert "--activation" in capsys.readouterr().err


def test_an_artifact_is_not_told_what_it_says_itself(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    artifact = write_artifact(tmp_path)

    status = segment.main([str(tmp_path / "a.png"), "-m", str(artifact), "--threshold", "0.4"])

    assert status == 2
    assert "threshold cannot be given: the artifact says what" in capsys.readouterr().err


def test_help_loads_neither_opencv_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from fcn_deploy.cli.segment import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'cv2', 'numpy', 'rich', 'numba'} & set(sys.modules)))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert "--policy {every,latest}" in output
    assert "LOADED []" in output


def test_the_choices_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    choices = {
        "--view": VIEWS,
        "--policy": POLICIES,
        "--writer": get_args(WriterName),
        "--precision": ("auto", *Precision),
        "--color": NETWORK_COLORS,
        "--activation": ACTIVATIONS,
        "--backend": ("auto", *backend_names(), *plan_backend_names()),
    }

    text = segment.build_parser().format_help()

    for option, names in choices.items():
        assert f"{option} {{{','.join(names)}}}" in text
    assert ASKED_ACTIVATIONS == ACTIVATIONS


@pytest.fixture
def interrupted(
    request: pytest.FixtureRequest, model: Path, long_clip: Path, tmp_path: Path
) -> tuple[int, str, Path]:
    """Send a signal to a run that has written something; give its status, stderr and folder."""
    out = tmp_path / "out"
    report = tmp_path / "report.json"
    with started(model, long_clip, "-o", out / "long.mp4", "--json", report) as child:
        wait_until(
            lambda: any(path.stat().st_size > 50_000 for path in out.glob("long.*.partial.mp4")),
            seconds=60,
        )
        child.send_signal(request.param)
        _, stderr = child.communicate(timeout=60)
    return child.returncode, stderr, out


@pytest.mark.parametrize(
    ("interrupted", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    indirect=["interrupted"],
    ids=["SIGINT", "SIGTERM"],
)
def test_an_interrupted_run_finishes_the_video_with_the_frames_so_far(
    interrupted: tuple[int, str, Path], status: int, tmp_path: Path
) -> None:
    returned, stderr, out = interrupted

    document: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert returned == status
    assert [path.name for path in out.iterdir()] == ["long.mp4"]
    frames = len(decode_all(out / "long.mp4"))
    assert 0 < frames < 6000
    # the signal may come between a frame's delivery and its writing
    assert document["delivered"] - 1 <= frames <= document["delivered"]
    lost = sum(document["dropped"].values()) + document["discarded_at_close"]
    assert document["captured"] == document["delivered"] + lost
    assert document["complete"] is False
    assert re.search("fcn-segment: (interrupted|terminated)\n$", stderr)


@pytest.mark.parametrize("interrupted", [signal.SIGKILL], indirect=True)
def test_a_killed_run_leaves_only_what_is_named_partial(
    interrupted: tuple[int, str, Path],
) -> None:
    returned, _, out = interrupted

    assert returned == -signal.SIGKILL
    (left,) = out.iterdir()
    assert re.fullmatch(r"long\.\w{8}\.partial\.mp4", left.name)


def test_a_stream_that_never_answers_fails_within_ten_seconds_and_keeps_its_password(
    model: Path, tmp_path: Path
) -> None:
    with black_hole() as port:
        address = f"rtsp://bob:s3cret@127.0.0.1:{port}/live?key=s3cret"
        with started(model, address, "-o", tmp_path, "--debug", "-v") as child:
            stdout, stderr = child.communicate(timeout=60)

    assert child.returncode == 2
    found = re.search(r"rtsp://\*\*\*@127\S+ did not answer within ([\d.]+) s\. Check", stderr)
    assert found is not None
    assert float(found.group(1)) < 10
    assert "s3cret" not in stdout + stderr
