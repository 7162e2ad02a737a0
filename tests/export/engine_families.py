"""The families of networks that plans must be built of, small, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from examples.brain_tissue.network import brain_tissue_fcn
from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.preprocess import default_preprocess
from fcn_export.graph_spec import GraphSpec
from fcn_export.trace.to_onnx import trace
from fcn_models import FCN, Backbone
from fcn_models.fcn import Geometry, Variant
from tests.export.tiny_networks import PyramidPooling, seeded

__all__ = ["FAMILIES", "FCNS", "traced"]

_CLASSES = 5


class _Bottleneck(nn.Module):
    """Residual block of FCN-ResNet50: 1x1, dilated 3x3, 1x1, and a projection beside them."""

    def __init__(self, inside: int, middle: int, outside: int, *, stride: int, dilation: int):
        super().__init__()
        self.reduce = _conv_norm(inside, middle, 1)
        self.spread = _conv_norm(middle, middle, 3, stride=stride, dilation=dilation)
        self.expand = _conv_norm(middle, outside, 1)
        self.project = _conv_norm(inside, outside, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(F.relu(self.spread(F.relu(self.reduce(x)))))
        return F.relu(y + self.project(x))


class _NarrowFCNResNet(nn.Module):
    """FCN-ResNet50's layers, an eighth as wide, one block a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 8, 7, stride=2)
        self.stages = nn.Sequential(
            _Bottleneck(8, 8, 32, stride=1, dilation=1),
            _Bottleneck(32, 16, 64, stride=2, dilation=1),
            _Bottleneck(64, 32, 128, stride=1, dilation=2),
            _Bottleneck(128, 64, 256, stride=1, dilation=4),
        )
        self.head = nn.Sequential(
            _conv_norm(256, 64, 3), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(64, _CLASSES, 1)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stages(F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1))
        scores = self.head(y)
        full = F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": full}


class _TransposedFCN(nn.Module):
    """The first FCN's way up: ConvTranspose, a skip, ConvTranspose again, crop to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv_norm(3, 16, 3, stride=2)
        self.second = _conv_norm(16, 32, 3, stride=2)
        self.score_quarter = nn.Conv2d(32, _CLASSES, 1)
        self.score_half = nn.Conv2d(16, _CLASSES, 1)
        self.up = nn.ConvTranspose2d(_CLASSES, _CLASSES, 4, stride=2, padding=1, bias=False)
        self.up_grouped = nn.ConvTranspose2d(
            _CLASSES, _CLASSES, 4, stride=2, padding=1, groups=_CLASSES, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        half = F.relu(self.first(x))
        coarse = self.up(self.score_quarter(F.relu(self.second(half))))
        fused = coarse[:, :, : half.shape[2], : half.shape[3]] + self.score_half(half)
        full: Tensor = self.up_grouped(fused)
        return full[:, :, : x.shape[2], : x.shape[3]]


def _lraspp() -> nn.Module:
    network: nn.Module = lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=_CLASSES
    )
    return network


def _fcn(variant: Variant, geometry: Geometry) -> nn.Module:
    """Make a narrow network of the FCN family; its fc6 sees 2x2 cells."""
    backbone = Backbone("vgg11", width=0.125, window=2, fc_width=16)
    return FCN(backbone, variant, _CLASSES, geometry=geometry)


# the others differ in how often they add and crop: `make plans` builds them all
FCNS = {
    "fcn8s_aligned": partial(_fcn, "8s", "aligned"),
    "fcn32s_aligned": partial(_fcn, "32s", "aligned"),
    "fcn32s_paper": partial(_fcn, "32s", "paper"),
}

FAMILIES: dict[str, tuple[Callable[[], nn.Module], Preprocess]] = {
    "brain": (brain_tissue_fcn, Preprocess((0.5,), (0.25,), "gray")),
    "lraspp": (_lraspp, default_preprocess()),
    "fcn_resnet": (_NarrowFCNResNet, default_preprocess()),
    "transposed": (_TransposedFCN, default_preprocess()),
    "pyramid": (PyramidPooling, default_preprocess()),
    **{name: (make, default_preprocess()) for name, make in FCNS.items()},
}


def traced(family: str) -> onnx.ModelProto:
    """Export a family's network, with random weights, in float32."""
    make, preprocess = FAMILIES[family]
    classes = 4 if family == "brain" else _CLASSES
    spec = GraphSpec(preprocess, num_classes=classes, upsample=False)
    return trace(seeded(make).eval(), spec).model


def _conv_norm(
    inside: int, outside: int, kernel: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, outside, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside))
