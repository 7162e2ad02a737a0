"""Run a network on tiles, and join the tiles' results into those of whole frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.errors import ExecutionError
from fcn_deploy.graph.receptive_field import Span
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.head.region import AxisRegion, upsample_argmax_region
from fcn_deploy.names import Array
from fcn_deploy.opening.readers import OutputReader, ScoresReader
from fcn_deploy.preprocess import pad_frame
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.tiling.layout import Cut, whole_samples

__all__ = ["NetworkRun", "ScoreGrid", "TileLayout", "segment_tiles"]


class NetworkRun(Protocol):
    """Runs a network on frames of one size without tiling them; `Segmenter` does."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]: ...

    def prepare(self, frames_bgr: Sequence[Array]) -> dict[str, Array]: ...

    def execute(self, feeds: Mapping[str, Array], *, scores: bool = False) -> dict[str, Array]: ...

    def finish(
        self, outputs: Mapping[str, Array], frames_bgr: Sequence[Array], *, scores: bool = False
    ) -> list[Segmentation]: ...

    def scores_of(self, outputs: Mapping[str, Array]) -> Array: ...


@dataclass(frozen=True, slots=True)
class TileLayout:
    """How frames of one size are cut.

    Attributes:
        size: (height, width) of the frames in px.
        padded: of what the network sees of them.
        rows, columns: the tiles along each axis.
        upsampled: what the runtime does with the scores, down and across; None where the network
            gives labels.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    rows: tuple[Cut, ...]
    columns: tuple[Cut, ...]
    upsampled: tuple[Upsampled, Upsampled] | None

    def __iter__(self) -> Iterator[tuple[Cut, Cut]]:
        return ((row, column) for row in self.rows for column in self.columns)


@dataclass(frozen=True, slots=True)
class ScoreGrid:
    """The whole frame's scores: what each sample sees, and how many (rows, columns) there are."""

    spans: tuple[Span, Span]
    samples: tuple[int, int]


def segment_tiles(
    network: NetworkRun,
    frames_bgr: Sequence[Array],
    layout: TileLayout,
    reader: OutputReader,
    grid: ScoreGrid | None,
) -> list[Segmentation]:
    """Segment frames of one size tile by tile.

    Args:
        frames_bgr: uint8 [H, W, 3] each; not modified.
        grid: join the scores as well; None leaves them out.

    Returns:
        One result a frame.
    """
    mosaic = _Mosaic(layout, len(frames_bgr))
    for row, column in layout:
        tiles = [_tile(frame, row, column) for frame in frames_bgr]
        outputs = network.execute(network.prepare(tiles), scores=grid is not None)
        if layout.upsampled is not None and isinstance(reader, ScoresReader):
            labels = _region_labels(
                outputs, upsampled=layout.upsampled, reader=reader, row=row, column=column
            )
            mosaic.put("labels", labels, row, column)
        else:
            _put_results(mosaic, network.finish(outputs, tiles), row, column)
        if grid is not None:
            mosaic.put_scores(network.scores_of(outputs), grid, row, column)
    return [
        Segmentation(
            labels=mosaic.whole["labels"][i],
            classes=network.classes,
            scores=None if grid is None else mosaic.whole["scores"][i],
            confidence=mosaic.whole["confidence"][i] if "confidence" in mosaic.whole else None,
            frame_bgr=frame,
            activate=reader.probabilities,
        )
        for i, frame in enumerate(frames_bgr)
    ]


def _tile(frame: Array, row: Cut, column: Cut) -> Array:
    """Cut a tile out of a frame that may have to be padded behind its end."""
    return pad_frame(
        frame[row.start : row.stop, column.start : column.stop], (row.size, column.size)
    )


def _region_labels(
    outputs: Mapping[str, Array],
    upsampled: tuple[Upsampled, Upsampled],
    reader: ScoresReader,
    row: Cut,
    column: Cut,
) -> Array:
    """Give the labels [N, h, w] that a tile is responsible for, of its own scores."""
    scores = reader.low_scores(outputs)
    regions = []
    for axis, (cut, whole) in enumerate(zip((row, column), upsampled, strict=True), start=2):
        first = cut.first_sample
        region = AxisRegion(whole, cut.begin, cut.end, first)
        if scores.shape[axis] <= region.last - first:
            raise ExecutionError(
                f"the network gave scores {list(scores.shape)} for a tile of "
                f"{row.size}x{column.size}; expected {region.last - first + 1} samples or more.",
                hint="Run frames of this size whole, with a larger tile_pixels.",
            )
        regions.append(region)
    return upsample_argmax_region(scores, *regions, threshold=reader.threshold)


def _put_results(mosaic: _Mosaic, results: Sequence[Segmentation], row: Cut, column: Cut) -> None:
    mine = (
        slice(row.begin - row.start, row.end - row.start),
        slice(column.begin - column.start, column.end - column.start),
    )
    mosaic.put("labels", np.stack([one.labels[mine] for one in results]), row, column)
    confidence = [one.confidence[mine] for one in results if one.confidence is not None]
    if confidence:
        mosaic.put("confidence", np.stack(confidence), row, column)


class _Mosaic:
    """Arrays of the whole frames' size that tiles are put into.

    Attributes:
        whole: by name: labels and confidence [N, H, W], scores [N, C, h, w].
    """

    def __init__(self, layout: TileLayout, count: int) -> None:
        self.layout = layout
        self.count = count
        self.whole: dict[str, Array] = {}

    def put(self, name: str, values: Array, row: Cut, column: Cut) -> None:
        """Put in what a tile is responsible for, [N, h, w]."""
        whole = self.whole.get(name)
        if whole is None:
            whole = np.empty((self.count, *self.layout.size), values.dtype)
        elif values.dtype.itemsize > whole.dtype.itemsize:  # the first label above 255
            whole = whole.astype(values.dtype)
        whole[:, row.begin : row.end, column.begin : column.end] = values
        self.whole[name] = whole

    def put_scores(self, values: Array, grid: ScoreGrid, row: Cut, column: Cut) -> None:
        """Put in those of a tile's scores [N, C, h, w] that are the whole frame's."""
        whole = self.whole.get("scores")
        if whole is None:
            whole = np.empty((*values.shape[:2], *grid.samples), np.float32)
            self.whole["scores"] = whole
        target: list[slice] = []
        source: list[slice] = []
        for axis, cut in enumerate((row, column)):
            span, samples = grid.spans[axis], grid.samples[axis]
            first, last = whole_samples(
                span, (cut.start, cut.stop), self.layout.padded[axis], samples=samples
            )
            offset = int(cut.start / span.stride)
            target.append(slice(first, last + 1))
            source.append(slice(first - offset, last + 1 - offset))
        whole[:, :, *target] = values[:, :, *source]
