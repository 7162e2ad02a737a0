"""make gpu-check: try everything that needs an NVIDIA GPU, and write a report to send back.

Builds plans with each TensorRT that is installed, compares their labels with ONNX Runtime's on the
CPU, runs them over each CUDA library, and times them against PyTorch on CUDA and trtexec. A step
that fails is noted with its traceback, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fcn_bench.gpu_measure import (
    agreement_with,
    head_agreement,
    run_trtexec,
    time_plan,
    time_torch,
    torch_interop_agreement,
)
from fcn_deploy.artifact import Artifact
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ModelSource
from fcn_deploy.backends.tensorrt.api import LIBRARY_NAMES, installed, load_tensorrt
from fcn_deploy.backends.tensorrt.device import device_problem, open_device
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.errors import BackendUnavailableError, FcnDeployError
from fcn_deploy.machine import describe_machine, distribution_version
from fcn_deploy.manifest import Variant
from fcn_deploy.tensors import Array, Precision, TensorSpec

__all__ = ["GpuCheck", "main"]

_DISTRIBUTIONS = (
    *("tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings", "torch", "onnx", "onnxruntime"),
    *("numpy", "fcn-deploy"),
)

# TensorRT rounds float32 factors to 10 bits (TF32) unless told otherwise; we tell it for fp32
LEAST_AGREEMENT = {
    Precision.FP32: 0.999,
    Precision.FP16: 0.99,
    Precision.BF16: 0.98,
    Precision.INT8: 0.98,
}

_DEVICES = ("pycuda", "cuda-python")


@dataclass
class GpuCheck:
    """One run of all steps, and what they found.

    Attributes:
        runs: how often each thing is timed.
        report: JSON; `steps` has one entry for each step, with `status` ok, failed, or skipped.
    """

    artifact: Artifact
    folder: Path
    libraries: Sequence[LibraryName]
    runs: int = 100
    say: Callable[[str], None] = lambda line: None
    report: dict[str, Any] = field(default_factory=lambda: {"schema_version": 1, "steps": []})

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed."""
        return [step["name"] for step in self.report["steps"] if step["status"] == "failed"]

    def run(self) -> None:
        """Try everything, and write `report.json` and `report.md` after each step."""
        self.step("environment", self._environment)
        for name in _DEVICES:
            self.step(f"device {name}", partial(self._device, name))
        graphs = [v for v in self.artifact.manifest.variants if v.backend is None]
        for library in self.libraries:
            for variant in graphs:
                self._check_plan(library, variant)
        self.step("torch", self._torch)

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Do one thing and note what it found, or how it failed; says whether it went well."""
        self.say(name)
        start = time.perf_counter()
        entry: dict[str, Any] = {"name": name, "status": "ok"}
        try:
            entry["found"] = work()
            if "skipped" in entry["found"]:
                entry["status"] = "skipped"
        except Exception as error:  # noqa: BLE001 - whatever it is, the report has it
            entry["status"] = "failed"
            entry["error"] = f"{type(error).__name__}: {error}"
            entry["traceback"] = traceback.format_exc()
        entry["seconds"] = round(time.perf_counter() - start, 3)
        self.report["steps"].append(entry)
        self.say(f"  {entry['status']}: {entry.get('error') or json.dumps(entry['found'])[:300]}")
        (self.folder / "report.json").write_text(json.dumps(self.report, indent=2, sort_keys=True))
        (self.folder / "report.md").write_text(self._markdown())
        return bool(entry["status"] == "ok")

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

    def _check_plan(self, library: LibraryName, variant: Variant) -> None:
        title = f"{library} {variant.precision}"
        plan = self.folder / f"model.{variant.precision}.{library}.plan"
        if not self.step(f"{title} build", lambda: self._build(library, variant, plan)):
            return
        frames = self._frames()
        wanted = self._reference(variant, frames)
        for name in _DEVICES:
            if device_problem(name) is None:
                self.step(
                    f"{title} labels over {name}",
                    partial(self._labels, library, variant, plan, name, frames, wanted),
                )
        for graphs in (False, True):
            self.step(
                f"{title} times{', CUDA graphs' if graphs else ''}",
                partial(
                    self._with_engine,
                    library,
                    plan,
                    partial(self._times, frames=frames, cuda_graphs=graphs),
                ),
            )
        self.step(
            f"{title} layers",
            lambda: self._with_engine(library, plan, lambda e: self._layers(e, frames)),
        )
        self.step(
            f"{title} trtexec",
            lambda: (
                {"skipped": "trtexec is of TensorRT"}
                if library != "tensorrt"
                else dict(run_trtexec(plan, {"image": frames}))
            ),
        )
        self.step(
            f"{title} on PyTorch's tensors", lambda: self._interop(library, plan, frames, wanted)
        )
        self.step(f"{title} head kernel", lambda: self._with_engine(library, plan, self._head))

    def _build(self, library: LibraryName, variant: Variant, plan: Path) -> dict[str, Any]:
        from fcn_export.engine import BuildConfig, build_engine, image_profile

        device = open_device()
        capability = ".".join(map(str, device.info.compute_capability))
        device.close()
        tensorrt = load_tensorrt(library)
        targets = (capability,) if tensorrt.capabilities.compute_capabilities else None
        manifest = self.artifact.manifest
        image = manifest.inputs[0]
        spec = TensorSpec(image.name, image.dtype, image.shape)
        profile = image_profile(spec, manifest.shapes)
        config = BuildConfig(
            library=library,
            profiles=(profile,),
            precision=variant.precision,
            compute_capabilities=targets,
            tf32=variant.precision is not Precision.FP32,
        )
        built = build_engine(self.artifact.check(variant.file), config, tensorrt=tensorrt)
        plan.write_bytes(built.plan)
        return {
            "library": str(tensorrt),
            "plan_bytes": len(built.plan),
            "build_seconds": built.seconds,
            "layer_shares": dict(built.layer_shares),
            "warnings": list(built.warnings)[:20],
        }

    def _times(self, engine: TrtEngine, *, frames: Array, cuda_graphs: bool) -> dict[str, Any]:
        feed = self._feed(engine, frames)
        return dict(time_plan(engine, feed, runs=self.runs, cuda_graphs=cuda_graphs))

    def _labels(
        self,
        library: LibraryName,
        variant: Variant,
        plan: Path,
        device: str,
        frames: Array,
        wanted: Array,
    ) -> dict[str, Any]:
        def compare(engine: TrtEngine) -> dict[str, Any]:
            with engine.session() as session:
                feed = self._feed(engine, frames)
                alone = session.infer(feed)[engine.outputs[0].name]
                # many under way at once must give the same labels as one
                pending = [session.submit(feed) for _ in range(20)]
                same = all(
                    (each.result()[engine.outputs[0].name] == alone).all() for each in pending
                )
            share = agreement_with(wanted, alone)
            least = LEAST_AGREEMENT[variant.precision]
            if not same or share < least:
                raise FcnDeployError(
                    f"{share:.5f} of the labels are ONNX Runtime's; at least {least} expected; "
                    f"20 runs at once {'agree' if same else 'DISAGREE'} with one."
                )
            return {"label_agreement": share, "runs_at_once_agree": same}

        return self._with_engine(library, plan, compare, device=device)

    def _layers(self, engine: TrtEngine, frames: Array) -> dict[str, Any]:
        with engine.session() as session:
            layers = session.profile_layers(self._feed(engine, frames), runs=10)
        slowest = sorted(layers, key=lambda layer: -layer.mean_ms)[:10]
        return {"layers": len(layers), "slowest": {x.name[:120]: x.mean_ms for x in slowest}}

    def _interop(
        self, library: LibraryName, plan: Path, frames: Array, wanted: Array
    ) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            return {"skipped": "this PyTorch has no CUDA"}
        return self._with_engine(
            library,
            plan,
            lambda e: {"label_agreement": torch_interop_agreement(e, frames, wanted)},
        )

    def _head(self, engine: TrtEngine) -> dict[str, Any]:
        share = head_agreement(engine, classes=21, size=self.artifact.manifest.shapes.opt[1:])
        if share < 0.9999:  # ties within rounding
            raise FcnDeployError(f"the kernel labels {share:.5f} of the pixels as the head does.")
        return {"label_agreement": share}

    def _torch(self) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            return {"skipped": "this PyTorch has no CUDA"}
        from fcn_export.loading import load_model

        source = self.artifact.manifest.source
        if source.path is None:
            return {"skipped": "the manifest does not say where its PyTorch model is"}
        model = load_model(source.path, arch=source.arch, output_key=source.output_key)
        channels = len(self.artifact.manifest.preprocess.mean)
        batch, height, width = self.artifact.manifest.shapes.opt
        return dict(time_torch(model.module, (batch, channels, height, width), runs=self.runs))

    def _with_engine(
        self,
        library: LibraryName,
        plan: Path,
        work: Callable[[TrtEngine], dict[str, Any]],
        *,
        device: str = "auto",
    ) -> dict[str, Any]:
        with TrtEngine.load(plan, library=library, device=device, trust_code=True) as engine:
            return work(engine)

    def _frames(self) -> Array:
        import numpy as np

        from fcn_bench.inputs import synthetic_frames

        batch, height, width = self.artifact.manifest.shapes.opt
        return np.ascontiguousarray(synthetic_frames(height, width, batch=batch)[:batch])

    def _reference(self, variant: Variant, frames: Array) -> Array:
        source = ModelSource(self.artifact.path / variant.file, self.artifact.read(variant.file))
        context = get_backend("onnxruntime").open(source)
        try:
            return context.execute({context.inputs[0].name: frames})[context.outputs[0].name]
        finally:
            context.close()

    def _feed(self, engine: TrtEngine, frames: Array) -> dict[str, Array]:
        return {engine.inputs[0].name: frames}

    def _markdown(self) -> str:
        lines = ["# GPU check", "", "| step | status | seconds | found |", "|---|---|---|---|"]
        for step in self.report["steps"]:
            found = step.get("error") or json.dumps(step["found"])
            text = " ".join(str(found).replace("|", "\\|").split())[:400]
            lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {text} |")
        return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns 0 where all went well, 1 where a step failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
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
    except BackendUnavailableError as error:
        sys.stderr.write(f"make gpu-check: {error}\n")
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    artifact = Artifact.open(args.artifact or _make_artifact(args.output, say))
    check = GpuCheck(artifact, args.output, libraries, runs=args.runs, say=say)
    check.run()
    say(f"The report is in {args.output}: please send report.json and report.md back.")
    for name in check.failed:
        say(f"FAILED: {name}")
    return 1 if check.failed else 0


def _libraries(wanted: LibraryName | None) -> tuple[LibraryName, ...]:
    found = tuple(name for name in LIBRARY_NAMES if installed(name) and wanted in (None, name))
    problem = device_problem() or (None if found else "neither tensorrt nor tensorrt-rtx is here")
    if problem is not None:
        raise BackendUnavailableError(
            f"nothing can be checked: {problem}.",
            hint="It needs an NVIDIA GPU with its driver, and: pip install 'fcn-deploy[gpu]'",
        )
    return found


def _make_artifact(folder: Path, say: Callable[[str], None]) -> Path:
    """Export torchvision's FCN-ResNet50 with seeded weights: its times are a trained one's."""
    import torch
    import torchvision

    from fcn_bench.inputs import synthetic_frames
    from fcn_export.export import ExportRequest, export_model
    from fcn_export.variants import made_precisions

    path = folder / "fcn_resnet50.fcn"
    if path.exists():
        return path
    say("exporting an FCN-ResNet50 with random weights")
    torch.manual_seed(0)
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), folder / "fcn_resnet50.pt")
    calibrate = None
    if Precision.INT8 in made_precisions():
        import cv2

        calibrate = folder / "calibration"
        calibrate.mkdir(exist_ok=True)
        for index, frame in enumerate(synthetic_frames(512, 512, batch=1)):
            cv2.imwrite(str(calibrate / f"{index}.png"), frame)
    request = ExportRequest(
        size=(512, 512), max_size=(1024, 1024), calibrate=calibrate, engine="none"
    )
    export_model(folder / "fcn_resnet50.pt", path, request=request)
    return path


if __name__ == "__main__":
    sys.exit(main())
