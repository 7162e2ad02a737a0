"""Parse the options of make gpu-check, and run its steps in turn."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fcn_bench import gpu_check
from fcn_bench.gpu_check.case import DEVICES, PlanCase
from fcn_bench.gpu_check.gpu_report import GpuReport
from fcn_bench.gpu_check.plan import PlanCheck
from fcn_bench.gpu_check.scores_plan import ScoresPlanCheck
from fcn_bench.gpu_check.timings import time_torch
from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.backends.tensorrt.api import LIBRARY_NAMES, installed
from fcn_deploy.backends.tensorrt.device import device_problem, open_device
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.errors import BackendUnavailableError, FcnDeployError
from fcn_deploy.machine import describe_machine, distribution_version

__all__ = ["GpuCheck", "main"]

_DISTRIBUTIONS = (
    *("tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings", "nvidia-cuda-nvrtc", "torch", "onnx"),
    *("onnxruntime", "numpy", "fcn-deploy"),
)


@dataclass
class GpuCheck:
    """One run of all steps.

    Attributes:
        runs: how often each thing is timed.
    """

    artifact: Artifact
    libraries: Sequence[LibraryName]
    report: GpuReport
    runs: int = 100

    def run(self) -> None:
        """Try everything."""
        self.report.step("environment", self._environment)
        for name in DEVICES:
            self.report.step(f"device {name}", partial(self._device, name))
        for library in self.libraries:
            for variant in self.artifact.manifest.variants:
                if variant.backend is None:
                    case = PlanCase(self.artifact, variant, library, self.report.folder)
                    if PlanCheck(case, self.report, self.runs).run():
                        ScoresPlanCheck(case, self.report, self.runs).run()
        self.report.step("torch", self._torch)

    def _environment(self) -> dict[str, Any]:
        smi = shutil.which("nvidia-smi")
        listing = "nvidia-smi is not on PATH"
        if smi is not None:
            listing = subprocess.run(
                [smi], capture_output=True, text=True, check=False, timeout=60
            ).stdout
        return {
            "machine": str(describe_machine()),
            "python": platform.python_version(),
            "libraries": {name: distribution_version(name) for name in _DISTRIBUTIONS},
            "nvidia_smi": listing,
        }

    def _device(self, name: str) -> dict[str, Any]:
        problem = device_problem(name)
        if problem is not None:
            return {"skipped": problem}
        device = open_device(name)
        try:
            with device.current():
                free, total = device.memory_info()
            return {"gpu": str(device.info), "free_bytes": free, "total_bytes": total}
        finally:
            device.close()

    def _torch(self) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            return {"skipped": "this PyTorch has no CUDA"}
        from fcn_export.load.torch_model import load_model

        source = self.artifact.manifest.source
        if source.path is None:
            return {"skipped": "the manifest does not say where its PyTorch model is"}
        model = load_model(source.path, arch=source.arch, output_key=source.output_key)
        channels = len(self.artifact.manifest.preprocess.mean)
        batch, height, width = self.artifact.manifest.shapes.opt
        return dict(time_torch(model.module, (batch, channels, height, width), runs=self.runs))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        0 where all went well, 1 where a step failed, 2 without a GPU or an artifact to check.
    """
    parser = argparse.ArgumentParser(prog="make gpu-check", description=gpu_check.__doc__)
    parser.add_argument("artifact", nargs="?", type=Path, help="(default: an FCN-ResNet50 is made)")
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"), help="folder")
    parser.add_argument("--library", choices=LIBRARY_NAMES, help="(default: those installed)")
    parser.add_argument("--runs", type=int, default=100, help="of each thing that is timed")
    args = parser.parse_args(argv)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        libraries = _libraries(args.library)
        args.output.mkdir(parents=True, exist_ok=True)
        artifact = Artifact.open(args.artifact or _make_artifact(args.output, say))
    except FcnDeployError as error:
        sys.stderr.write(f"make gpu-check: {error}\n")
        return 2
    report = GpuReport(args.output, say)
    GpuCheck(artifact, libraries, report, runs=args.runs).run()
    say(f"The report is in {args.output}: please send report.json and report.md back.")
    for name in report.failed:
        say(f"FAILED: {name}")
    return 1 if report.failed else 0


def _libraries(wanted: LibraryName | None) -> tuple[LibraryName, ...]:
    names = LIBRARY_NAMES if wanted is None else (wanted,)
    found = tuple(name for name in names if installed(name))
    problem = device_problem() or (None if found else f"no {' or '.join(names)} is installed")
    if problem is not None:
        raise BackendUnavailableError(
            f"nothing can be checked: {problem}.",
            hint="It needs an NVIDIA GPU with its driver, and TensorRT: pip install "
            "'fcn-deploy[rtx]', or 'fcn-deploy[gpu]' with CUDA's headers.",
        )
    return found


def _make_artifact(folder: Path, say: Callable[[str], None]) -> Path:
    """Export torchvision's FCN-ResNet50 with seeded weights: its times are a trained one's."""
    import cv2
    import torch
    import torchvision

    from fcn_bench.inputs import synthetic_frames
    from fcn_export.export import ExportRequest, export_model

    path = folder / "fcn_resnet50.fcn"
    if path.exists():
        return path
    say("exporting an FCN-ResNet50 with random weights")
    torch.manual_seed(0)
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), folder / "fcn_resnet50.pt")
    calibrate = folder / "calibration"
    calibrate.mkdir(exist_ok=True)
    for index, frame in enumerate(synthetic_frames(512, 512, batch=1)):
        cv2.imwrite(str(calibrate / f"{index}.png"), frame)
    request = ExportRequest(
        size=(512, 512),
        max_size=(1024, 1024),
        calibrate=calibrate,
        engine="none",
        allow_broken=True,  # weights are random: labels of near ties that anything may tip
    )
    export_model(folder / "fcn_resnet50.pt", path, request=request)
    return path
