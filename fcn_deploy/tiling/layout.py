"""Choose where to cut a large frame, so that each tile sees all that its labels depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fcn_deploy.graph.receptive_field import Span
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.names import Array

__all__ = [
    "Cut",
    "LabelAxis",
    "cut_axis",
    "least_tile_px",
    "tile_sides",
    "whole_samples",
]


@dataclass(frozen=True, slots=True)
class Cut:
    """One tile along one axis.

    Attributes:
        start, stop: px of the image that the network is given.
        begin, end: labels that this tile is responsible for; those of all tiles join up.
        first_sample: index in the whole image of the tile's first sample.
    """

    start: int
    stop: int
    begin: int
    end: int
    first_sample: int

    @property
    def size(self) -> int:
        """Pixels that the network is given."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class LabelAxis:
    """How labels follow from the network's samples, along one axis.

    Attributes:
        samples: that the whole image has.
        nearest: intp [labels], the sample at or before each label.
        reach: 1 where a label depends on the sample behind, too; 0 where it is the sample.
    """

    samples: int
    nearest: Array
    reach: int

    @classmethod
    def of_labels(cls, size: int) -> LabelAxis:
        """Make the axis of a network that gives the labels itself."""
        return cls(size, np.arange(size), 0)

    @classmethod
    def of_scores(cls, resize: Upsampled) -> LabelAxis:
        """Make the axis of a network whose scores are upsampled."""
        return cls(resize.samples, resize.axis().cells, 1)

    def until(self, size: int) -> LabelAxis:
        """Keep the first `size` labels; the others are of padding."""
        return LabelAxis(self.samples, self.nearest[:size], self.reach)


def least_tile_px(span: Span, alignment: int) -> int:
    """Give the smallest tile, in px, in which at least a stride of labels is the whole image's."""
    seen = span.high - span.low + 2 * span.stride + alignment
    return math.ceil(seen / alignment) * alignment


def tile_sides(
    size: tuple[int, int],
    *,
    spans: tuple[Span, Span],
    alignment: tuple[int, int],
    tile_pixels: int,
) -> tuple[int, int]:
    """Choose the tile's (height, width) in px: near a square, or as long as a narrow image needs.

    Never below `least_tile_px`, whatever `tile_pixels` says.
    """
    side = math.isqrt(tile_pixels)
    least = [least_tile_px(span, step) for span, step in zip(spans, alignment, strict=True)]
    height = max(min(size[0], side), least[0])
    width = max(min(size[1], tile_pixels // height), least[1])
    if size[1] < side:
        height = max(min(size[0], tile_pixels // width), least[0])
    sides = [
        max(-(-one // step) * step if one == whole else one // step * step, low)
        for one, whole, step, low in zip((height, width), size, alignment, least, strict=True)
    ]
    return sides[0], sides[1]


def whole_samples(
    span: Span, tile: tuple[int, int], length: int, *, samples: int
) -> tuple[int, int]:
    """Give the first and the last sample that a tile computes as the whole image does.

    Args:
        tile: the px from start to stop of an axis of `length` px.
        samples: that the whole axis has.
    """
    start, stop = tile
    first = 0 if start == 0 else math.ceil((start - span.low) / span.stride)
    last = samples - 1
    if stop < length:
        last = min(last, math.floor((stop - 1 - span.high) / span.stride))
    return first, last


def cut_axis(
    length: int, *, span: Span, alignment: int, tile_px: int, labels: LabelAxis
) -> tuple[Cut, ...]:
    """Cut an axis into the fewest tiles of at most `tile_px`, all but the last of one size.

    A tile begins at a multiple of the alignment and gives only what depends on nothing outside;
    at the image's own borders it sees the border as the whole image does.

    Args:
        length: of the image in px.
        tile_px: a multiple of the alignment, `least_tile_px` or more.
    """
    cuts = _cut(length, span=span, alignment=alignment, tile_px=tile_px, labels=labels)
    low, high = least_tile_px(span, alignment) // alignment, tile_px // alignment
    while low < high:  # the same number of tiles may be had with smaller ones
        middle = (low + high) // 2
        smaller = _cut(
            length, span=span, alignment=alignment, tile_px=middle * alignment, labels=labels
        )
        if len(smaller) == len(cuts):
            cuts, high = smaller, middle
        else:
            low = middle + 1
    return cuts


def _cut(
    length: int, span: Span, alignment: int, tile_px: int, labels: LabelAxis
) -> tuple[Cut, ...]:
    behind = np.minimum(labels.nearest + labels.reach, labels.samples - 1)
    cuts: list[Cut] = []
    begin, total = 0, len(behind)
    while begin < total:
        needed = span.stride * int(labels.nearest[begin]) + span.low
        start = max(0, math.floor(needed / alignment) * alignment)
        if start + tile_px >= length:
            start = min(start, max(0, -(-(length - tile_px) // alignment) * alignment))
        stop = min(start + tile_px, length)
        _, last = whole_samples(span, (start, stop), length, samples=labels.samples)
        end = total if stop == length else int(np.searchsorted(behind, last, side="right"))
        if end <= begin:
            raise ValueError(f"tiles of {tile_px} px are too small for what a sample sees")
        cuts.append(
            Cut(start, stop=stop, begin=begin, end=end, first_sample=int(start / span.stride))
        )
        begin = end
    return tuple(cuts)
