"""Enlarge scores by a whole factor: by a transposed convolution or by interpolation.

A transposed convolution with a bilinear kernel puts a weighted mean of the neighbouring cells at
each pixel. Its kernel has 2 * factor taps where cells are centred between pixels, and one less
where they are centred on pixels; both place every cell exactly where the image has it. Beyond the
outermost cells the scores of all classes fade alike, which changes no label.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional

__all__ = ["UPSAMPLINGS", "Enlarge", "Upsampling", "bilinear_kernel"]

Upsampling = Literal["learned", "fixed", "interpolate"]
"""How scores are enlarged."""

UPSAMPLINGS: tuple[Upsampling, ...] = get_args(Upsampling)


def bilinear_kernel(size: int) -> torch.Tensor:
    """Give the weights of bilinear interpolation, float32 [size, size].

    As Caffe's bilinear filler, which the paper's networks use.

    Args:
        size: twice the factor, or one less.
    """
    factor = (size + 1) // 2
    centre = factor - 1.0 if size % 2 else factor - 0.5
    taps = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(taps, taps)


class Enlarge(nn.Module):
    """Makes scores [N, C, h, w] `factor` times finer.

    Attributes:
        cut: finer cells before the output's first one that are made and left out, at the top and
            at the left.
        skipped: finer cells before the output's first one that it does not have: whoever adds
            finer scores leaves out as many of them at the top and at the left.
    """

    weight: torch.Tensor

    def __init__(
        self, channels: int, factor: int, first: float, *, kind: Upsampling, spare: bool
    ) -> None:
        """Make the layer.

        Args:
            channels: classes.
            first: where the first coarse cell is centred, counted in finer cells from the first.
            kind: ``learned`` may mix classes; ``fixed`` keeps its kernel as a buffer.
            spare: there are more coarse cells than the image needs, so that interpolation may be
                cut to the place where it belongs, too. Without, it is a shift by half a cell at
                most: none where cells are centred between pixels.
        """
        super().__init__()
        self.factor, self.kind, self._channels = factor, kind, channels
        halfway = (factor - 1) / 2
        if kind == "interpolate":
            cut = math.floor(halfway - first) if spare else 0
        else:
            size = 2 * factor if first % 1 else 2 * factor - 1
            cut = round((size - 1) / 2 - first)
            self._start(size)
        self.cut = max(cut, 0)
        self.skipped = max(-cut, 0)
        # padding cuts the far side, too, where all cells are wanted
        self._regrown = 0 if first == halfway else min(self.cut, factor - 1)

    def _start(self, size: int) -> None:
        kernel = bilinear_kernel(size)
        if self.kind == "fixed":
            self.register_buffer("weight", kernel.repeat(self._channels, 1, 1, 1))
            return
        weight = torch.zeros(self._channels, self._channels, size, size)
        weight[range(self._channels), range(self._channels)] = kernel.to(weight)
        self.weight = nn.Parameter(weight)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Enlarge scores, float32 [N, C, h, w], by the factor."""
        if self.kind == "interpolate":
            finer = functional.interpolate(
                scores, scale_factor=float(self.factor), mode="bilinear", align_corners=False
            )
            return finer[:, :, self.cut :, self.cut :] if self.cut else finer
        return functional.conv_transpose2d(
            scores,
            self.weight,
            stride=self.factor,
            padding=self.cut,
            output_padding=self._regrown,
            groups=self._channels if self.kind == "fixed" else 1,
        )
