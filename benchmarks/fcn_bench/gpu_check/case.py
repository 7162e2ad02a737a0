"""Open one variant of an artifact with one TensorRT library, for make gpu-check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import Variant
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.backends.tensorrt.api import load_tensorrt
from fcn_deploy.backends.tensorrt.device import open_device
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.names import Array, Precision, TensorSpec

__all__ = ["DEVICES", "PlanCase", "feed_of"]

DEVICES = ("pycuda", "cuda-python")

# TensorRT rounds float32 factors to 10 bits (TF32) unless told otherwise; we tell it for fp32
_LEAST_AGREEMENT = {
    Precision.FP32: 0.999,
    Precision.FP16: 0.99,
    Precision.BF16: 0.98,
    Precision.INT8: 0.98,
}


@dataclass
class PlanCase:
    """A graph of an artifact, and the library that builds and runs its plan.

    Attributes:
        folder: that plans are written to.
    """

    artifact: Artifact
    variant: Variant
    library: LibraryName
    folder: Path

    @property
    def title(self) -> str:
        """What its steps' names begin with."""
        return f"{self.library} {self.variant.precision}"

    @property
    def plan(self) -> Path:
        """The plan of the whole graph, which makes its labels itself."""
        return self.folder / f"model.{self.variant.precision}.{self.library}.plan"

    @property
    def least_agreement(self) -> float:
        """Share of pixels that must have ONNX Runtime's label."""
        return _LEAST_AGREEMENT[self.variant.precision]

    @cached_property
    def frames(self) -> Array:
        """Frames of the size that is served, uint8 [N, H, W, 3], BGR."""
        _, height, width = self.artifact.manifest.shapes.opt
        return self.frames_of((height, width))

    @cached_property
    def wanted(self) -> Array:
        """ONNX Runtime's labels of `frames`, uint8 [N, H, W]."""
        context = self.reference()
        try:
            found = context.execute({context.inputs[0].name: self.frames})
            return found[context.outputs[0].name]
        finally:
            context.close()

    def frames_of(self, size: tuple[int, int]) -> Array:
        """Make a batch of frames of (height, width) px, uint8 [N, H, W, 3]."""
        from fcn_bench.inputs import synthetic_frames

        batch = self.artifact.manifest.shapes.opt[0]
        return np.ascontiguousarray(synthetic_frames(*size, batch=batch)[:batch])

    def graph(self) -> bytes:
        """Read the ONNX file."""
        return self.artifact.read(self.variant.file)

    def reference(self, outputs: Sequence[str] | None = None) -> ExecutionContext:
        """Open the graph with ONNX Runtime on the CPU; the caller closes it.

        Args:
            outputs: tensors to give out; None: the graph's own.
        """
        path = self.artifact.path / self.variant.file
        wanted = None if outputs is None else tuple(outputs)
        return get_backend("onnxruntime").open(ModelSource(path, self.graph(), wanted))

    def build(self, graph: Path, plan: Path) -> dict[str, Any]:
        """Build a plan for the GPU that is here, of the artifact's whole range of shapes."""
        from fcn_export.engine import BuildConfig, build_engine, image_profile

        device = open_device()
        capability = ".".join(map(str, device.info.compute_capability))
        device.close()
        tensorrt = load_tensorrt(self.library)
        targets = (capability,) if tensorrt.capabilities.compute_capabilities else None
        manifest = self.artifact.manifest
        image = manifest.inputs[0]
        spec = TensorSpec(image.name, image.dtype, image.shape)
        config = BuildConfig(
            library=self.library,
            profiles=(image_profile(spec, manifest.shapes),),
            precision=self.variant.precision,
            compute_capabilities=targets,
            tf32=self.variant.precision is not Precision.FP32,
        )
        built = build_engine(graph, config, tensorrt=tensorrt)
        plan.write_bytes(built.plan)
        return {
            "library": str(tensorrt),
            "plan_bytes": len(built.plan),
            "build_seconds": built.seconds,
            "layer_shares": dict(built.layer_shares),
            "warnings": list(built.warnings)[:20],
        }

    def with_engine(
        self,
        work: Callable[[TrtEngine], dict[str, Any]],
        *,
        plan: Path | None = None,
        device: str = "auto",
    ) -> dict[str, Any]:
        """Open a plan for as long as some work takes.

        Args:
            plan: None: `self.plan`.
            device: driver library, as `open_device` takes it.
        """
        path = self.plan if plan is None else plan
        with TrtEngine.load(path, library=self.library, device=device, trust_code=True) as engine:
            return work(engine)


def feed_of(engine: TrtEngine, frames: Array) -> dict[str, Array]:
    """Give frames, uint8 [N, H, W, 3], the name that a plan has for them."""
    return {engine.inputs[0].name: frames}
