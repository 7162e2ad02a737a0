"""Build the wheel and use it as a stranger would: clean environment, other folder, no PyTorch.

Tests run from the checkout, where a file that the wheel lacks is still found. This does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
COMMANDS = ("fcn-export", "fcn-bench", "fcn-segment", "fcn-doctor")

# three 1x1 filters that pass one channel each: the label is the brightest channel of the frame
MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
brightest (float[N, 3, H, W] image) => (float[N, 3, H, W] scores)
<float[3, 3, 1, 1] weight = {1, 0, 0, 0, 1, 0, 0, 0, 1}>
{
    scores = Conv(image, weight)
}
"""

SEGMENT = """
import sys
import cv2
import numpy as np
from fcn_deploy import Segmenter

frame_bgr = np.random.default_rng(7).integers(0, 256, (37, 53, 3), dtype=np.uint8)
for backend in ("openvino", "onnxruntime"):
    with Segmenter.open("brightest.onnx", backend=backend, mean=(0, 0, 0), std=(1, 1, 1)) as run:
        labels = run(frame_bgr).labels
    # the network takes RGB, so that label 0 is red, the last channel of the frame
    assert np.array_equal(labels, frame_bgr[..., ::-1].argmax(axis=2)), backend
    print(f"{backend}: {labels.shape} labels as expected")
assert "torch" not in sys.modules
cv2.imwrite("frame.png", frame_bgr)
"""


PHOTOGRAPHS = """
from importlib.resources import files
from fcn_export.check.sample_frames import photographs

assert len(dict(photographs())) == 12
assert (files("fcn_export.check") / "photographs" / "LICENCES.txt").is_file()
print("the photographs to measure on are there")
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fcn-deploy-wheel-") as name:
        folder = Path(name)
        wheel = build_wheel(folder / "dist")
        binaries = install(wheel, folder / "venv")
        write_model(folder / "brightest.onnx")
        for command in COMMANDS:
            run([binaries / command, "--help"], folder, quiet=True)
            print(f"{command} --help: ok")
        run([binaries / "python", "-c", SEGMENT], folder)
        run([binaries / "python", "-c", PHOTOGRAPHS], folder)
        run([binaries / "fcn-segment", "frame.png", "-m", "brightest.onnx", "-o", "out"], folder)
        if not any((folder / "out").iterdir()):
            raise SystemExit("fcn-segment wrote nothing into its folder")
        run([binaries / "fcn-doctor", "brightest.onnx"], folder)
        check_missing_torch([binaries / "fcn-export", "brightest.onnx"], folder)
    return 0


def build_wheel(folder: Path) -> Path:
    """Build the sdist and, from it, the wheel: a file that the sdist lacks is noticed here."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder], ROOT, quiet=True)
    (wheel,) = folder.glob("*.whl")
    print(f"built {wheel.name}")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    binaries = folder / "bin"
    target = f"{wheel}[cpu,onnxruntime]"
    run([binaries / "python", "-m", "pip", "install", "-qq", "-c", CONSTRAINTS, target], folder)
    print(f"installed {wheel.name}[cpu,onnxruntime]")
    return binaries


def write_model(path: Path) -> None:
    from onnx import parser

    path.write_bytes(parser.parse_model(MODEL).SerializeToString())


def check_missing_torch(command: list[Path | str], folder: Path) -> None:
    """Without PyTorch a command must say in one line which extra brings it."""
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    lines = result.stderr.splitlines()
    if result.returncode != 2 or len(lines) != 1 or "fcn-deploy[export]" not in lines[0]:
        raise SystemExit(
            f"{command[0]} without its libraries gave status {result.returncode} and\n"
            f"{result.stdout}{result.stderr}\n"
            "expected status 2 and one line that names fcn-deploy[export]"
        )
    print(lines[0])


def run(command: list[Path | str], folder: Path, *, quiet: bool = False) -> None:
    output = subprocess.PIPE if quiet else None
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))} ended with status {result.returncode}\n"
            f"{result.stdout or ''}"
        )


def environment() -> dict[str, str]:
    """Give the environment without what would let Python find the checkout."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
    return {name: text for name, text in os.environ.items() if name not in hidden}


if __name__ == "__main__":
    raise SystemExit(main())
