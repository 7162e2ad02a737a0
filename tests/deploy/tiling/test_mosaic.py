"""Results of tiles put together, with a network that is a few lines of NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.errors import ExecutionError
from fcn_deploy.graph.receptive_field import Span
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.names import Array
from fcn_deploy.opening.readers import LabelsReader, ScoresReader
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.tiling.layout import LabelAxis, cut_axis, least_tile_px
from fcn_deploy.tiling.mosaic import ScoreGrid, TileLayout, segment_tiles

LABELS = LabelsReader(file="box sum", output="labels", head="in the graph")
SCORES = ScoresReader(file="box sum", output="scores", head="in the runtime")


class BoxSum:
    """A sum over `2 * reach + 1` pixels each way, at every `stride`-th pixel: labels or scores."""

    def __init__(self, reach: int, stride: int = 1, *, many: bool = False) -> None:
        self.reach, self.stride = reach, stride
        self.many = many
        self.sizes: list[tuple[int, int]] = []

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return ()

    @property
    def span(self) -> Span:
        far = Fraction(self.reach)
        return Span(0, Fraction(self.stride), -far, far)

    def sums(self, frame: Array) -> Array:
        """Give int64 [h, w]; beyond the borders there are zeros."""
        side = 2 * self.reach + 1
        padded = np.pad(frame[:, :, 0].astype(np.int64), self.reach)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
        found: Array = windows.sum(axis=(2, 3))[:: self.stride, :: self.stride]
        return found

    def prepare(self, frames_bgr: Sequence[Array]) -> dict[str, Array]:
        return {"image": np.stack(frames_bgr)}

    def execute(self, feeds: Mapping[str, Array], *, scores: bool = False) -> dict[str, Array]:
        self.sizes.append(feeds["image"].shape[1:3])
        sums = np.stack([self.sums(frame) for frame in feeds["image"]])
        classes = np.stack([sums % 7, sums % 11, sums % 5], axis=1).astype(np.float32)
        labels = sums % 1000 if self.many else sums % 251
        # labels above 255 come first in the tile that has them
        dtype = np.uint16 if labels.max() > 255 else np.uint8
        return {"labels": labels.astype(dtype), "scores": classes}

    def finish(
        self, outputs: Mapping[str, Array], frames_bgr: Sequence[Array], *, scores: bool = False
    ) -> list[Segmentation]:
        return [
            Segmentation(labels=labels, classes=(), confidence=one[0] / 7)
            for labels, one in zip(outputs["labels"], outputs["scores"], strict=True)
        ]

    def scores_of(self, outputs: Mapping[str, Array]) -> Array:
        return outputs["scores"]


def layout_of(network: BoxSum, size: tuple[int, int], *, scores: bool = False) -> TileLayout:
    resizes = (
        tuple(Upsampled(-(-side // network.stride), side) for side in size) if scores else None
    )
    least = least_tile_px(network.span, network.stride)
    rows, columns = (
        cut_axis(
            side,
            span=network.span,
            alignment=network.stride,
            tile_px=least + network.stride,
            labels=LabelAxis.of_labels(side)
            if resizes is None
            else LabelAxis.of_scores(resizes[axis]),
        )
        for axis, side in enumerate(size)
    )
    both = None if resizes is None else (resizes[0], resizes[1])
    return TileLayout(size, size, rows, columns, both)


def frames_of(size: tuple[int, int], count: int = 2) -> list[Array]:
    random = np.random.default_rng(size[0] * 1000 + size[1])
    return [random.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


sides = st.integers(1, 60)


@settings(max_examples=40)
@given(st.tuples(sides, sides), st.integers(0, 5))
def test_labels_and_confidence_of_tiles_are_those_of_the_frame(
    size: tuple[int, int], reach: int
) -> None:
    network, frames = BoxSum(reach), frames_of(size)

    results = segment_tiles(network, frames, layout_of(network, size), LABELS, None)

    for frame, result in zip(frames, results, strict=True):
        assert np.array_equal(result.labels, network.sums(frame) % 251)
        assert result.confidence is not None
        assert np.array_equal(result.confidence, (network.sums(frame) % 7 / 7).astype(np.float32))
        assert result.scores is None
        assert result.frame_bgr is frame


@settings(max_examples=40)
@given(st.tuples(sides, sides), st.integers(0, 4), st.sampled_from((1, 2, 4)))
def test_scores_of_tiles_are_those_of_the_frame_and_their_labels_too(
    size: tuple[int, int], reach: int, stride: int
) -> None:
    network, frames = BoxSum(reach, stride), frames_of(size)
    layout = layout_of(network, size, scores=True)
    whole = network.execute(network.prepare(frames))["scores"]
    grid = ScoreGrid((network.span, network.span), (whole.shape[2], whole.shape[3]))
    one = layout_of_one(network, size)

    results = segment_tiles(network, frames, layout, SCORES, grid)
    at_once = segment_tiles(network, frames, one, SCORES, None)

    for expected, result, untiled in zip(whole, results, at_once, strict=True):
        assert result.scores is not None
        assert np.array_equal(result.scores, expected)
        assert np.array_equal(result.labels, untiled.labels)


def layout_of_one(network: BoxSum, size: tuple[int, int]) -> TileLayout:
    """Give the layout with one tile, which is the frame."""
    resizes = [Upsampled(-(-side // network.stride), side) for side in size]
    rows, columns = (
        cut_axis(
            side,
            span=network.span,
            alignment=network.stride,
            tile_px=least_tile_px(network.span, network.stride) + network.stride * side,
            labels=LabelAxis.of_scores(resize),
        )
        for side, resize in zip(size, resizes, strict=True)
    )
    assert len(rows) == len(columns) == 1
    return TileLayout(size, size, rows, columns, (resizes[0], resizes[1]))


def test_labels_above_255_in_a_later_tile_keep_those_of_earlier_ones() -> None:
    network = BoxSum(1, many=True)
    (frame,) = frames_of((40, 50), 1)
    frame[:20] = 1  # sums of 9 at most

    (result,) = segment_tiles(network, [frame], layout_of(network, (40, 50)), LABELS, None)

    assert len(network.sizes) > 4
    assert result.labels.dtype == np.uint16
    assert np.array_equal(result.labels, network.sums(frame) % 1000)


def test_a_network_that_gives_too_few_samples_of_a_tile_is_an_error() -> None:
    network = BoxSum(1, 2)
    layout = layout_of(network, (40, 50), scores=True)
    network.stride = 4

    with pytest.raises(ExecutionError, match=r"gave scores \[1, 3, .* samples or more"):
        segment_tiles(network, frames_of((40, 50), 1), layout, SCORES, None)
