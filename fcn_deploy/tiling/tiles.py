"""Segment large frames in bounded memory, cut into overlapping tiles that join without a seam.

A tile is larger than the part it is responsible for by what the network sees around each sample.
Where the graph is local, the labels and scores are those of the whole frame, but for the rounding
of sums that a library orders by the size of its input. Where it is not, as with global pooling,
they differ; `measure_tiling_error` says how much.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from fractions import Fraction

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import FrameTooLargeError
from fcn_deploy.graph.receptive_field import ReceptiveField, Span, find_receptive_field
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.names import Array
from fcn_deploy.opening.load import OpenedModel
from fcn_deploy.opening.readers import LabelsReader, ScoresReader
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.tiling.layout import LabelAxis, cut_axis, least_tile_px, tile_sides
from fcn_deploy.tiling.mosaic import NetworkRun, ScoreGrid, TileLayout, segment_tiles

__all__ = ["Tiling"]

_log = logging.getLogger(__name__)

_WHOLE_BYTES = 3 << 30
"""Frames run whole up to here, by the graph's own count of the floats held at once: 4K frames in
FCN-ResNet50. Libraries were measured to take 0.5 to 2 times the count."""

_TILE_BYTES = 1 << 29
"""Bytes that a tile may take by the same count: 100 megapixels then stay below 2 GB in all."""

_USUAL_BYTES_PER_PX = 256
"""Bytes per pixel of graphs that cannot be followed: more than FCN-ResNet50 and LR-ASPP take."""

_USUAL_HALO = 256
"""Pixels of halo for graphs that cannot be followed; FCN-ResNet50 sees 221 to each side."""

_USUAL_STEP = 64
"""Pixels that tiles of such graphs begin at multiples of: no usual network strides further."""


class Tiling:
    """How a network runs on frames that are too large for it; several threads may share one."""

    def __init__(
        self, model: OpenedModel, shapes: ShapeRange | None, *, tile_pixels: int | None = None
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._asked_pixels = tile_pixels
        self._fields: dict[str, ReceptiveField | str] = {}
        self._warned = False

    def __repr__(self) -> str:
        return f"Tiling({'exact' if self.exact else 'approximate'}: {self.reason})"

    @property
    def field(self) -> ReceptiveField | str:
        """What a sample of the network's output depends on, or why that cannot be told."""
        return self._field_of(self._model.reader.output)

    @property
    def exact(self) -> bool:
        """Whether tiles give the whole frame's scores, at least of frames of fitting sizes."""
        return isinstance(self.field, ReceptiveField) and not self.field.broken_by

    @property
    def reason(self) -> str:
        """Why tiles are exact or not, and of which sizes."""
        field = self.field
        if isinstance(field, str):
            noted = self._noted
            if noted is None:
                return f"its receptive field is unknown: {field}"
            far = max(max(noted.before), max(noted.behind))
            return f"{field}; a label depends on {far} px around it, as the manifest says"
        if field.broken_by:
            more = len(field.broken_by) - 1
            return f"{field.broken_by[0]}{f', and {more} more do' if more else ''}"
        height, width = field.alignment
        odd = field.differs_at((32 * height + 1, 32 * width + 1))
        sees = f"a sample depends on {' and '.join(map(str, field.halo_px))} px around it"
        if odd is None:
            return sees
        return f"{sees}, where height and width are multiples of {height} and {width}; else {odd}"

    @property
    def whole_pixels(self) -> int | None:
        """Frames of more pixels are cut; None where none are, as the network takes one size."""
        if any(size is not None for size in self._model.input_format.size):
            return None
        return self._asked_pixels or _WHOLE_BYTES // self._bytes_per_px()

    @property
    def tile_pixels(self) -> int:
        """Pixels of a tile, halo included, at most: unless the halo alone takes more."""
        return self._asked_pixels or _TILE_BYTES // self._bytes_per_px()

    @property
    def least_tile_px(self) -> tuple[int, int]:
        """The smallest tile's (height, width), which hardly holds more than its halo."""
        spans, steps = self._geometry()
        return least_tile_px(spans[0], steps[0]), least_tile_px(spans[1], steps[1])

    @property
    def tile_steps_px(self) -> tuple[int, int]:
        """What tiles begin at multiples of, (height, width)."""
        return self._geometry()[1]

    @property
    def joins_scores(self) -> bool:
        """Whether the class scores of tiles can be joined."""
        scores = self._model.reader.scores
        return scores is not None and isinstance(self._field_of(scores), ReceptiveField)

    def is_needed(self, size: tuple[int, int]) -> bool:
        """Say whether frames of (height, width) px are cut."""
        limit = self.whole_pixels
        return limit is not None and size[0] * size[1] > limit

    def batch_size(self, size: tuple[int, int], *, most: int) -> int:
        """Give how many frames of (height, width) px run together within what one may take."""
        limit = self.whole_pixels
        return most if limit is None else max(1, min(most, limit // (size[0] * size[1])))

    def differs_at(self, size: tuple[int, int]) -> str | None:
        """Say why tiles differ from the whole frame of (height, width) px; None: they do not."""
        field = self.field
        if isinstance(field, str) or field.broken_by:
            return self.reason
        return field.differs_at(self._padded(size))

    def count(self, size: tuple[int, int], *, tile_pixels: int | None = None) -> tuple[int, int]:
        """Give how many tiles, (down, across), frames of (height, width) px are cut into."""
        layout = self._layout(size, tile_pixels or self.tile_pixels)
        return len(layout.rows), len(layout.columns)

    def segment(
        self,
        network: NetworkRun,
        frames_bgr: Sequence[Array],
        *,
        scores: bool = False,
        tile_pixels: int | None = None,
    ) -> list[Segmentation]:
        """Segment frames of one size tile by tile.

        Args:
            network: runs a tile as a frame of its own.
            frames_bgr: uint8 [H, W, 3] each; not modified.
            scores: join the class scores as well, which takes as much memory as they have.
            tile_pixels: as in the attribute, which None takes.

        Raises:
            FrameTooLargeError: scores are wanted of a network whose tiles cannot be joined.
            ExecutionError, NonFiniteOutputError: as for a frame that is run whole.
        """
        size = (frames_bgr[0].shape[0], frames_bgr[0].shape[1])
        layout = self._layout(size, tile_pixels or self.tile_pixels)
        grid = self._score_grid(layout.padded) if scores else None
        self._warn(size)
        return segment_tiles(
            network, frames_bgr=frames_bgr, layout=layout, reader=self._model.reader, grid=grid
        )

    def _layout(self, size: tuple[int, int], tile_pixels: int) -> TileLayout:
        padded = self._padded(size)
        spans, alignment = self._geometry()
        sides = tile_sides(padded, spans=spans, alignment=alignment, tile_pixels=tile_pixels)
        resizes = self._upsampled(size, padded)
        cuts = []
        for axis in (0, 1):
            resize = None if resizes is None else resizes[axis]
            labels = (
                LabelAxis.of_labels(padded[axis]) if resize is None else LabelAxis.of_scores(resize)
            )
            cuts.append(
                cut_axis(
                    padded[axis],
                    span=spans[axis],
                    alignment=alignment[axis],
                    tile_px=sides[axis],
                    labels=labels.until(size[axis]),
                )
            )
        return TileLayout(size, padded=padded, rows=cuts[0], columns=cuts[1], upsampled=resizes)

    def _geometry(self) -> tuple[tuple[Span, Span], tuple[int, int]]:
        """Give what a sample sees, and what tiles begin at multiples of."""
        field = self._usable_field()
        multiple = self._shapes.multiple_of if self._shapes is not None else 1
        noted = self._noted
        if field is None and noted is not None:
            rows, columns = (
                Span(axis, Fraction(1), Fraction(-noted.before[axis]), Fraction(noted.behind[axis]))
                for axis in (0, 1)
            )
            above, left = (math.lcm(multiple, step) for step in noted.alignment)
            return (rows, columns), (above, left)
        if field is None:
            far, one = Fraction(_USUAL_HALO), Fraction(1)
            step = math.lcm(multiple, _USUAL_STEP)
            return (Span(0, one, -far, far), Span(1, one, -far, far)), (step, step)
        height, width = (math.lcm(multiple, step) for step in field.alignment)
        return (field.rows, field.columns), (height, width)

    def _upsampled(
        self, size: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled] | None:
        """Give the upsampling that the runtime does, along both axes."""
        reader, field = self._model.reader, self._usable_field()
        if not isinstance(reader, ScoresReader) or field is None:
            return None
        return reader.upsampled(field.samples_at(padded), size)

    def _score_grid(self, padded: tuple[int, int]) -> ScoreGrid:
        reader = self._model.reader
        field = self._field_of(reader.scores or reader.output)
        if isinstance(field, str) or not self.joins_scores:
            raise FrameTooLargeError(
                f"a frame of {padded[0]}x{padded[1]} is segmented in tiles; the scores of "
                f"'{self._model.file.path.name}' cannot be joined.",
                hint="Ask for labels alone, or raise tile_pixels.",
            )
        return ScoreGrid((field.rows, field.columns), field.samples_at(padded))

    def _field_of(self, tensor: str) -> ReceptiveField | str:
        if tensor not in self._fields:
            graph = self._model.file.graph
            self._fields[tensor] = (
                "only ONNX files are followed"
                if graph is None
                else find_receptive_field(graph, tensor)
            )
        return self._fields[tensor]

    def _usable_field(self) -> ReceptiveField | None:
        """Give the field; None too where labels do not have the image's size, so not its pixels."""
        field = self.field
        if isinstance(field, str):
            return None
        reads_labels = isinstance(self._model.reader, LabelsReader)
        if reads_labels and any(stride != 1 for stride in field.stride):
            return None
        return field

    @property
    def _noted(self) -> SeenByNetwork | None:
        """The receptive field that the manifest gives, the only source for a plan."""
        manifest = self._model.file.manifest
        return None if manifest is None else manifest.receptive_field

    def _bytes_per_px(self) -> int:
        if self._model.bytes_per_px is not None:  # then small frames need no graph to be followed
            return math.ceil(self._model.bytes_per_px)
        field = self.field
        return _USUAL_BYTES_PER_PX if isinstance(field, str) else math.ceil(field.bytes_per_px)

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        return size if self._shapes is None else self._shapes.padded_size(*size)

    def _warn(self, size: tuple[int, int]) -> None:
        differs = None if self._warned else self.differs_at(size)
        if differs is not None:
            self._warned = True
            _log.warning(
                "'%s' runs on frames of %sx%s in tiles, which changes its labels a little: %s.",
                self._model.file.path, *size, differs,
            )  # fmt: skip
