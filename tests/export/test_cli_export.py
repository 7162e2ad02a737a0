"""fcn-export as a command: exit status, one-line errors, JSON, signals; help without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fcn_deploy.artifact.folder import Artifact
from fcn_export.cli import main
from tests.export.tiny_networks import HalfResolution, seeded

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--size", "64x48", "--min-size", "32x32", "--max-size", "96x96")
SIZES = (*SMALL, "--engine", "none")
FACTORY = "tests.export.tiny_networks:HalfResolution"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of HalfResolution with five classes."""
    path = tmp_path / "weights.pt"
    torch.save(seeded(HalfResolution).state_dict(), path)
    return path


def command(*args: object) -> list[str]:
    code = """if True:
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
        from fcn_export.cli import main
        sys.exit(main())
    """
    return [sys.executable, "-c", code, *map(str, args)]


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "export")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_help_needs_neither_torch_nor_onnx() -> None:
    code = textwrap.dedent(
        """
        import sys
        from fcn_export.cli import main
        try:
            main(["--help"])
        except SystemExit as stopped:
            assert stopped.code == 0
        heavy = {"torch", "torchvision", "onnx", "onnxruntime", "openvino", "cv2", "numba"}
        print("loaded:", sorted(heavy & set(sys.modules)))
        """
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert "usage: fcn-export" in done.stdout
    assert "loaded: []" in done.stdout


def test_a_checkpoint_becomes_an_artifact_with_a_line_a_step_and_a_table(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = checkpoint.with_name("classes.json")
    entries = [{"name": f"c{index}", "color": [index, 0, 0]} for index in range(5)]
    classes.write_text(json.dumps(entries))

    status = main([str(checkpoint), "--arch", FACTORY, "--classes", str(classes), *SIZES])

    captured = capsys.readouterr()
    assert status == 0
    steps = [line.split("  ")[0] for line in captured.err.splitlines()]
    assert steps == [
        "load", "check weights", "try sizes", "trace", "verify", "fp16", "measure", "write",
    ]  # fmt: skip
    for heading in (
        "variant",
        "size",
        "max error",
        "mIoU",
        "status",
        "onnxruntime fp32",
        "onnxruntime fp16",
    ):
        assert heading in captured.out
    manifest = Artifact.open(checkpoint.with_suffix(".fcn")).manifest
    assert [(entry.name, entry.color) for entry in manifest.classes][1] == ("c1", (1, 0, 0))
    assert manifest.source.path == str(checkpoint)
    assert manifest.source.arch == FACTORY


def test_json_on_stdout_is_json_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "chosen.fcn"

    status = main(
        [str(checkpoint), "-o", str(output), "--arch", FACTORY, "--json", "-", "-q", *SIZES]
    )

    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert status == 0
    assert captured.err == ""
    assert document["artifact"] == str(output)
    assert document["num_classes"] == 5


@pytest.mark.parametrize(("options", "message"), [
    (("--precision", "fp32,int8"), "precision int8 takes its ranges from images"),
    (("--calibrate", "nowhere"), "nowhere does not exist; expected a folder of images"),
    (("--samples", "nowhere"), "nowhere does not exist; expected a folder of images"),
    (("--max-miou-drop", "-1"), "max_miou_drop is -1.0; expected 0 points or more"),
    (("--engine", "tensorrt"), "TensorRT builds a plan on the GPU that it is for, and there is no"),
    (("--engine", "tensorrt-rtx", "--timing-cache", "x"), "takes no --timing-cache"),
    (("--engine", "none", "--no-tf32"), "tf32 is given, but engine is 'none'"),
    (("--profiles", "nowhere"), "nowhere"),
    (("--size", "32x32", "--min-size", "64x64"), "height has min 64, opt 32"),
    (("--arch-arg", "classes"), "classes"),
    (("--arch", "nothing"), "--arch 'nothing' is neither one of"),
    (("--eval", "nowhere", "nowhere"), "there is no folder 'nowhere'"),
    (("--classes", "nowhere"), "cannot read the classes in 'nowhere'"),
    (("--mean", "0.5"), "mean has 1 and std 3 values"),
    (("--mean", "a,b"), "is not numbers"),
    (("--batch", "4"), "is not MIN:OPT:MAX"),
    (("--size", "512"), "is not HEIGHTxWIDTH"),
])  # fmt: skip
def test_wrong_options_end_with_status_2_and_one_line(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    try:
        status = main([str(checkpoint), "-q", *options])
    except SystemExit as stopped:  # argparse
        status = int(stopped.code or 0)

    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert not checkpoint.with_suffix(".fcn").exists()


def test_a_failed_check_ends_with_status_1_and_nothing_is_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # no network is wrong on purpose: the limit is made so that rounding exceeds it
    monkeypatch.setattr("fcn_export.check.verify.MAX_RELATIVE_SCORE_ERROR", 0.0)

    status = main([str(checkpoint), "-q", "--arch", FACTORY, *SIZES])

    assert status == 1
    assert "rounding explains" in capsys.readouterr().err
    assert [path.name for path in checkpoint.parent.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_cleanly_with_its_status(
    checkpoint: Path, number: signal.Signals, status: int
) -> None:
    process = subprocess.Popen(
        command(checkpoint, "--arch", FACTORY, *SIZES),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # a step is done, so the next one runs

    process.send_signal(number)

    _, rest = process.communicate(timeout=120)
    assert first.startswith("load")
    assert process.returncode == status
    assert "nothing was written to" in rest
    assert "Traceback" not in rest
    assert [path.name for path in checkpoint.parent.iterdir()] == ["weights.pt"]
