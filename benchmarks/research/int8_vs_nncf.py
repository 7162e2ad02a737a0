"""Compare OpenVINO's latency and labels on our Q/DQ graph with those on NNCF's own INT8 graph.

    python -m venv build/nncf && build/nncf/bin/pip install nncf openvino==2026.4.1
    python -m benchmarks.research.int8_vs_nncf build/demo/brain_tissue.fcn \
        --calibrate build/demo/brain/train_images --images build/demo/brain/images \
        --nncf-python build/nncf/bin/python

NNCF is no dependency of this project: it lives in an environment of its own, and gets the frames
that ours was calibrated on. All graphs then run here, in one process, in turn; a round times each
once. Label agreement is against the fp32 graph's labels.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.machine import usable_cores
from fcn_deploy.names import Array, ColorOrder, Precision
from fcn_deploy.telemetry import import_openvino, silent_environment
from fcn_export.check.fidelity import label_agreement
from fcn_export.precision.calibration_images import CalibrationImages, fit_frame

_WARM_UP = 3


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="with an fp32 and an int8 graph")
    parser.add_argument("--calibrate", type=Path, required=True, help="images for NNCF")
    parser.add_argument("--images", type=Path, required=True, help="images to compare labels on")
    parser.add_argument("--nncf-python", type=Path, required=True, help="of an environment")
    parser.add_argument("--limit", type=int, default=128, help="calibration images [128]")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    artifact = Artifact.open(options.artifact)
    shapes = artifact.manifest.shapes
    fp32, int8 = (
        artifact.check(artifact.variant(p).file) for p in (Precision.FP32, Precision.INT8)
    )
    color: ColorOrder = "rgb" if artifact.manifest.inputs[0].color == "rgb" else "bgr"
    with tempfile.TemporaryDirectory() as folder:
        chosen = CalibrationImages.find(options.calibrate, size=shapes.opt[1:], limit=options.limit)
        frames = Path(folder, "frames.npz")
        np.savez(frames, *(fit_frame(frame, shapes)[0] for frame in chosen.frames(color=color)))
        nncf = Path(folder, "nncf.xml")
        script = Path(__file__).with_name("nncf_quantize.py")
        command = [str(options.nncf_python), str(script), str(fp32), str(frames), str(nncf)]
        subprocess.run(command, check=True, env=silent_environment())
        requests = {
            name: _open(path) for name, path in (("fp32", fp32), ("int8", int8), ("nncf", nncf))
        }
        tested = CalibrationImages.find(options.images, size=shapes.opt[1:])
        test_frames = [fit_frame(frame, shapes) for frame in tested.frames(color=color)]
        _say(
            f"{len(chosen)} calibration images, {len(test_frames)} test images, "
            f"{usable_cores()} cores, {options.rounds} rounds of {test_frames[0].shape}"
        )
        _report(
            _latencies(requests, test_frames[0], options.rounds), _labels(requests, test_frames)
        )
    return 0


def _open(path: Path) -> Any:
    openvino = import_openvino()
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": usable_cores(),
    }
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", config).create_infer_request()


def _latencies(requests: Mapping[str, Any], image: Array, rounds: int) -> dict[str, list[float]]:
    """Time each graph once a round, in ms; rounds share whatever else the machine does."""
    times: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(_WARM_UP + rounds):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer([image])
            if number >= _WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _labels(requests: Mapping[str, Any], images: Sequence[Array]) -> dict[str, float]:
    """Give each graph's label agreement with the fp32 graph."""
    found = {
        name: np.concatenate([_run(request, image).ravel() for image in images])
        for name, request in requests.items()
    }
    return {name: label_agreement(labels, found["fp32"]) for name, labels in found.items()}


def _run(request: Any, image: Array) -> Array:
    request.infer([image])
    labels: Array = np.array(request.get_output_tensor(0).data)
    return labels


def _report(times: Mapping[str, Sequence[float]], agreement: Mapping[str, float]) -> None:
    _say(f"{'graph':<6} {'p50 ms':>8} {'min ms':>8} {'of nncf':>8} {'agreement':>10}")
    for name, values in times.items():
        ratios = [mine / other for mine, other in zip(values, times["nncf"], strict=True)]
        _say(
            f"{name:<6} {statistics.median(values):8.2f} {min(values):8.2f} "
            f"{statistics.median(ratios):8.3f} {agreement[name]:10.4%}"
        )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
