"""Measure how far tiles are from the whole frame, on a frame that fits into memory both ways."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fcn_deploy.names import Array, Precision
from fcn_deploy.tiling.mosaic import NetworkRun
from fcn_deploy.tiling.tiles import Tiling

__all__ = ["TilingError", "measure_tiling_error", "tiling_self_test"]

_TOLERANCE = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 5e-2}
"""Share of the scores' range by which equal sums may differ: kernels, and so the order of a sum and
what is rounded in between, change with the input's size."""

_CORE_PX = 64
"""About how many pixels along each axis a tile of a self-test gives labels for."""


class TiledNetwork(NetworkRun, Protocol):
    """Cuts frames into tiles; `Segmenter` does."""

    @property
    def tiling(self) -> Tiling: ...

    @property
    def precision(self) -> Precision: ...


@dataclass(frozen=True, slots=True)
class TilingError:
    """How far the results of tiles are from those of the whole frame.

    Attributes:
        size: (height, width) of the frame in px.
        tiles: (down, across).
        differing_labels: how many pixels have another label than the whole frame gives them.
        label_agreement: share of the pixels with the whole frame's label.
        score_error: largest difference of a score, as a share of the range of the whole frame's
            scores; None where the scores are not to be had.
        differs: why tiles must differ, as the graph says; None: they must not.
        tolerance: largest `score_error` that rounding explains.
    """

    size: tuple[int, int]
    tiles: tuple[int, int]
    differing_labels: int
    label_agreement: float
    score_error: float | None
    differs: str | None
    tolerance: float

    @property
    def as_promised(self) -> bool:
        """Whether tiles give the whole frame's scores, or were not said to."""
        if self.differs is not None:
            return True
        if self.score_error is None:
            return self.label_agreement == 1
        return self.score_error <= self.tolerance

    def __str__(self) -> str:
        height, width = self.size
        error = "unknown" if self.score_error is None else f"{self.score_error:.2g} of their range"
        return (
            f"{height}x{width} in {self.tiles[0]}x{self.tiles[1]} tiles: labels agree on "
            f"{self.label_agreement:.4%} of the pixels, largest error of a score {error}"
        )


def measure_tiling_error(
    segmenter: TiledNetwork, frame_bgr: Array, *, tile_pixels: int | None = None
) -> TilingError:
    """Segment a frame whole and in tiles, and compare.

    Args:
        frame_bgr: uint8 [H, W, 3]; small enough to be run whole.
        tile_pixels: of a tile with its halo; None takes the segmenter's own, of which a small
            frame is but one.

    Raises:
        InputError, ExecutionError: as for segmenting the frame.
    """
    tiling = segmenter.tiling
    scores = tiling.joins_scores
    feeds = segmenter.prepare([frame_bgr])
    outputs = segmenter.execute(feeds, scores=scores)
    whole = segmenter.finish(outputs, [frame_bgr], scores=scores)[0]
    tiled = tiling.segment(segmenter, [frame_bgr], scores=scores, tile_pixels=tile_pixels)[0]
    error = None
    if whole.scores is not None and tiled.scores is not None:
        scale = float(np.ptp(whole.scores)) or 1.0
        error = float(np.abs(whole.scores - tiled.scores).max()) / scale
    size = (frame_bgr.shape[0], frame_bgr.shape[1])
    return TilingError(
        size=size,
        tiles=tiling.count(size, tile_pixels=tile_pixels),
        differing_labels=int(np.count_nonzero(whole.labels != tiled.labels)),
        label_agreement=float(np.mean(whole.labels == tiled.labels)),
        score_error=error,
        differs=tiling.differs_at(size),
        tolerance=_TOLERANCE.get(segmenter.precision, _TOLERANCE[Precision.BF16]),
    )


def tiling_self_test(
    segmenter: TiledNetwork, *, most_seconds: float | None = None
) -> TilingError | str:
    """Prove on a small synthetic frame, cut into the smallest tiles, that these join up.

    The frame is just large enough for a tile that touches no border, and its sides are multiples
    of the network's strides.

    Args:
        most_seconds: leave it out where a first tile's time says that it would take longer; None
            sets no limit.

    Returns:
        What tiles change, or a phrase that says why it was not tried.

    Raises:
        InputError, ExecutionError: as for segmenting the frame.
    """
    if segmenter.tiling.whole_pixels is None:
        return "the network takes frames of one size, which are never cut"
    least, steps = segmenter.tiling.least_tile_px, segmenter.tiling.tile_steps_px
    core = [-(-_CORE_PX // step) * step for step in steps]
    tile = [low + more for low, more in zip(least, core, strict=True)]
    height, width = (side + 2 * more for side, more in zip(tile, core, strict=True))
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    frame = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    frame = np.ascontiguousarray(frame // 2 + random.integers(0, 128, frame.shape, np.uint8))
    if most_seconds is not None:
        began = time.monotonic()
        segmenter.execute(segmenter.prepare([np.ascontiguousarray(frame[: tile[0], : tile[1]])]))
        down, across = segmenter.tiling.count((height, width), tile_pixels=math.prod(tile))
        runs = down * across + height * width / math.prod(tile)  # in tiles, and whole
        seconds = (time.monotonic() - began) * runs
        if seconds > most_seconds:
            return f"it would take about {seconds:.2g} s here, of which {most_seconds:g} are given"
    return measure_tiling_error(segmenter, frame, tile_pixels=math.prod(tile))
