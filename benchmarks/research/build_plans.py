"""Build plans of the usual networks in every precision; print sizes, build times, layers' types.

    python -m benchmarks.research.build_plans --network brain,lraspp,fcn_resnet50,transposed
    python -m benchmarks.research.build_plans --network family

`family` is FCN-32s, 16s and 8s in both geometries, over a narrow VGG11.

Weights are random and quantisation scales made up: neither changes what is built. Nothing is run,
so no GPU is needed; the time is of this machine's CPU and says nothing of the GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Precision, TensorSpec
from fcn_deploy.preprocess import default_preprocess
from fcn_export.engine import BuildConfig, build_engine, image_profile
from fcn_export.graph_spec import GraphSpec
from fcn_export.precision.uncalibrated import in_precision
from fcn_export.trace.to_onnx import trace
from fcn_models import FCN, Backbone
from fcn_models.fcn import GEOMETRIES, VARIANTS, Geometry, Variant

if TYPE_CHECKING:
    from fcn_export.engine import BuiltPlan

SHAPES = ShapeRange((1, 64, 64), (1, 512, 512), (8, 1024, 1024))
_CLASSES = 21
_IMAGE = TensorSpec("image", "uint8", (None, None, None, 3))


class TransposedFCN(nn.Module):
    """ResNet-18, a score layer, and one ConvTranspose of stride 32 up to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.features = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        self.score = nn.Conv2d(512, _CLASSES, 1)
        self.up = nn.ConvTranspose2d(_CLASSES, _CLASSES, 64, stride=32, padding=16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Score every class at every pixel: [N, 3, H, W] to [N, 21, H, W]."""
        full: Tensor = self.up(self.score(self.features(x)))
        return full[:, :, : x.shape[2], : x.shape[3]]


def brain() -> nn.Module:
    from examples.brain_tissue.network import brain_tissue_fcn

    return brain_tissue_fcn()


def lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network: nn.Module = lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=_CLASSES
    )
    return network


def fcn_resnet50() -> nn.Module:
    from torchvision.models.segmentation import fcn_resnet50 as make

    network: nn.Module = make(
        weights=None, weights_backbone=None, num_classes=_CLASSES, aux_loss=False
    )
    return network


def family(variant: Variant, geometry: Geometry) -> nn.Module:
    backbone = Backbone("vgg11", width=0.125, window=2, fc_width=16)
    return FCN(backbone, variant, _CLASSES, geometry=geometry)


FAMILY: dict[str, tuple[Callable[[], nn.Module], Preprocess]] = {
    f"fcn{variant}_{geometry}": (partial(family, variant, geometry), default_preprocess())
    for variant in VARIANTS
    for geometry in GEOMETRIES
}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Preprocess]] = {
    "brain": (brain, Preprocess((0.5,), (0.25,), "gray")),
    "lraspp": (lraspp, default_preprocess()),
    "transposed": (TransposedFCN, default_preprocess()),
    "fcn_resnet50": (fcn_resnet50, default_preprocess()),
}


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default=",".join(NETWORKS), metavar="LIST")
    options = parser.parse_args()
    form = "{:<16}{:<6}{:>10}{:>10}{:>9}  {}\n"
    sys.stdout.write(form.format("network", "", "graph MB", "plan MB", "build s", "layers"))
    named = options.network.split(",")
    for name in [one for each in named for one in (FAMILY if each == "family" else (each,))]:
        graph = traced(name)
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
            size, engine = build(graph, precision)
            shares = ", ".join(f"{share:.0%} {kind}" for kind, share in engine.layer_shares.items())
            figures = (
                f"{size / 1e6:.1f}",
                f"{len(engine.plan) / 1e6:.1f}",
                f"{engine.seconds:.1f}",
            )
            sys.stdout.write(form.format(name, str(precision), *figures, shares))
            sys.stdout.flush()
    return 0


def traced(name: str) -> onnx.ModelProto:
    """Export a network with random weights, in float32."""
    make, preprocess = {**NETWORKS, **FAMILY}[name]
    torch.manual_seed(0)
    classes = 4 if name == "brain" else _CLASSES
    spec = GraphSpec(preprocess, num_classes=classes, upsample=False)
    return trace(make().eval(), spec).model


def build(graph: onnx.ModelProto, precision: Precision) -> tuple[int, BuiltPlan]:
    """Build a plan; gives the graph's size in bytes and the plan."""
    config = BuildConfig(
        library="tensorrt-rtx", precision=precision, profiles=(image_profile(_IMAGE, SHAPES),)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(in_precision(graph, precision).SerializeToString())
        return path.stat().st_size, build_engine(path, config)


if __name__ == "__main__":
    sys.exit(main())
