"""A small fully convolutional network for brain tissue, with skips at 1/2, 1/4 and 1/8."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MEAN", "STD", "BrainTissueFCN", "brain_tissue_fcn"]

MEAN = 0.5
"""Subtracted from the gray values in 0..1 before they enter the network."""

STD = 0.25
"""The gray values in 0..1 are divided by this, after MEAN is subtracted."""


class BrainTissueFCN(nn.Module):
    """Label every pixel of a gray slice, of any height and width.

    Three stages of plain 3x3 convolutions work at 1/2, 1/4 and 1/8 of the input's size. From the
    coarsest on, each is projected to one width, brought to the size of the next finer stage and
    added to it; the classifier reads the sum at 1/2, and its scores are brought to the input's
    size. All resizing is bilinear with half-pixel centres and takes its size from the tensor that
    it meets, so that odd sizes need no padding.
    """

    def __init__(
        self,
        num_classes: int = 4,
        *,
        widths: tuple[int, int, int] = (48, 64, 96),
        fused_width: int = 48,
    ) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.stem = _convolution(1, 16)
        self.stage_half = _stage(16, half, depth=2)
        self.stage_quarter = _stage(half, quarter, depth=2)
        self.stage_eighth = _stage(quarter, eighth, depth=3)
        self.project_half = nn.Conv2d(half, fused_width, 1)
        self.project_quarter = nn.Conv2d(quarter, fused_width, 1)
        self.project_eighth = nn.Conv2d(eighth, fused_width, 1)
        self.merge = _convolution(fused_width, fused_width)
        self.classifier = nn.Conv2d(fused_width, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Score every class at every pixel.

        Args:
            image: float32 [N, 1, H, W], gray values in 0..1 normalised by MEAN and STD.

        Returns:
            Scores before softmax, float32 [N, num_classes, H, W].
        """
        half = self.stage_half(self.stem(image))  # [N, 48, ceil(H/2), ceil(W/2)]
        quarter = self.stage_quarter(half)  # [N, 64, ceil(H/4), ceil(W/4)]
        eighth = self.stage_eighth(quarter)  # [N, 96, ceil(H/8), ceil(W/8)]
        fused = self.project_eighth(eighth)
        fused = self.project_quarter(quarter) + _resize_like(fused, quarter)
        fused = self.project_half(half) + _resize_like(fused, half)
        scores = self.classifier(self.merge(fused))  # [N, num_classes, ceil(H/2), ceil(W/2)]
        return _resize_like(scores, image)


def brain_tissue_fcn() -> BrainTissueFCN:
    """Build the network of the committed checkpoint, with random weights."""
    return BrainTissueFCN()


def _convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _stage(in_channels: int, out_channels: int, *, depth: int) -> nn.Sequential:
    """Halve the size, then convolve `depth` times."""
    layers = [_convolution(in_channels, out_channels, stride=2)]
    layers += [_convolution(out_channels, out_channels) for _ in range(depth)]
    return nn.Sequential(*layers)


def _resize_like(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(
        features, size=reference.shape[-2:], mode="bilinear", align_corners=False
    )
