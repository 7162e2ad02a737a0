"""From what a network gave to labels, scores and confidence of the frames' own size.

Which of the three readers a network has is chosen when it is opened: it gives labels, or scores
that are labelled as they are, or scores at which the graph was stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.artifact.output_meaning import Activation, OutputMeaning
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ExecutionError, NonFiniteOutputError
from fcn_deploy.graph.meaning import probabilities
from fcn_deploy.graph.peel import PeeledTail
from fcn_deploy.head import upsample_argmax
from fcn_deploy.head.geometry import Upsampled, interpolate
from fcn_deploy.head.region import AxisRegion, upsample_argmax_region
from fcn_deploy.names import Array
from fcn_deploy.segmentation import Segmentation

__all__ = ["LabelsReader", "OutputReader", "PeeledScoresReader", "ScoresReader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReader(ABC):
    """Reads what one network gives.

    Attributes:
        file: the network's name, for messages.
        output: that labels are read from.
        head: where scores become labels, and why there, a phrase.
        shapes: that frames are padded to; None where they are not padded.
        scores: the tensor that holds the class scores before upsampling; None where not known.
        scores_axis: of the classes in that tensor: 1 for [N, C, h, w], 3 for [N, h, w, C], None
            for [N, h, w] of a single class.
        activation: of that tensor; ``"ids"`` where no probabilities can be made of it.
    """

    file: str
    output: str
    head: str
    shapes: ShapeRange | None = None
    classes: tuple[ClassInfo, ...] = ()
    scores: str | None = None
    scores_axis: int | None = 1
    activation: Activation = "ids"

    @abstractmethod
    def labels(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array:
        """Give labels [N, H, W] of (height, width) px, uint8, or uint16 above 256 classes."""

    def confidences(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array | None:
        """Give the labels' probability, float32 [N, H, W], where the network says it."""
        return None

    def results(
        self, outputs: Mapping[str, Array], frames_bgr: Sequence[Array], *, scores: bool = False
    ) -> list[Segmentation]:
        """Give one result a frame, of the frames' own size.

        Args:
            outputs: of one run, by name.
            frames_bgr: uint8 [H, W, 3] each, all of one size.
            scores: give the class scores as well, which the run must have given.

        Raises:
            ExecutionError: the network gave labels that are smaller than the frames.
            NonFiniteOutputError: a score is NaN or infinite.
        """
        size: tuple[int, int] = frames_bgr[0].shape[:2]
        labels = self.labels(outputs, size)
        all_scores = self.scores_of(outputs) if scores else None
        confidence = self.confidences(outputs, size)
        return [
            Segmentation(
                labels=labels[i],
                classes=self.classes,
                scores=None if all_scores is None else all_scores[i],
                confidence=None if confidence is None else np.ascontiguousarray(confidence[i]),
                frame_bgr=frame,
                activate=self.probabilities,
            )
            for i, frame in enumerate(frames_bgr)
        ]

    def scores_of(self, outputs: Mapping[str, Array]) -> Array:
        """Give the scores before upsampling, float32 [N, C, h, w], of a run that gave them.

        Raises:
            NonFiniteOutputError: a score is NaN or infinite.
        """
        found = _classes_first(outputs[self.scores or self.output], self.scores_axis)
        if not np.isfinite(found).all():
            raise NonFiniteOutputError(
                f"the scores of '{self.file}' hold NaN or infinity.",
                hint="Run it in fp32; if they stay, the weights or the input are at fault.",
            )
        return np.asarray(found, np.float32)

    def probabilities(self, scores: Array, size: tuple[int, int]) -> Array:
        """Make probabilities of one frame's scores, activating them where the network did not.

        Args:
            scores: float32 [C, h, w], as `scores_of` gives them.
            size: (height, width) of the frame in px.

        Returns:
            float32 [C, height, width] in 0..1.

        Raises:
            ValueError: what the scores are is not known.
        """
        if self.activation == "ids":
            raise ValueError(
                f"what the scores of '{self.file}' are is not known, so that there are no "
                "probabilities; say it with activation (--activation)"
            )
        return probabilities(self.scores_at_pixels(scores, size), OutputMeaning(self.activation))

    def scores_at_pixels(self, scores: Array, size: tuple[int, int]) -> Array:
        """Enlarge one frame's scores, float32 [C, h, w], to (height, width) px, as for labels."""
        axes = self.enlarging((scores.shape[1], scores.shape[2]), self.padded(size))
        return interpolate(scores, *axes)[:, : size[0], : size[1]].copy()

    def enlarging(
        self, samples: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled]:
        """Give how scores [N, C, *samples] are enlarged to a padded frame's (height, width) px."""
        return Upsampled(samples[0], padded[0]), Upsampled(samples[1], padded[1])

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give the (height, width) px that the network sees of a frame."""
        return size if self.shapes is None else self.shapes.padded_size(*size)

    def _require_all(self, shape: Sequence[int], size: tuple[int, int]) -> None:
        """Refuse what is no labels [N, H, W], or fewer than frames of (height, width) px have."""
        if len(shape) != 3 or shape[1] < size[0] or shape[2] < size[1]:
            raise ExecutionError(
                f"'{self.file}' gave labels {list(shape)} for frames of {list(size)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsReader(OutputReader):
    """Of a network that gives labels, made in its graph or on its device.

    Attributes:
        confidence: the output with the labels' probability, or None.
    """

    confidence: str | None = None

    def labels(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array:
        """Cut labels [N, H, W] to the frame's size, as uint8, or uint16 above 256 classes."""
        labels = outputs[self.output]
        if labels.ndim == 4 and 1 in (labels.shape[1], labels.shape[3]):
            # some exporters keep the axis of the classes
            labels = labels[:, 0] if labels.shape[1] == 1 else labels[..., 0]
        self._require_all(labels.shape, size)
        if labels.dtype not in (np.uint8, np.uint16):
            many = len(self.classes) > 256 or int(labels.max()) > 255
            labels = labels.astype(np.uint16 if many else np.uint8)
        if labels.shape[1:] == size:
            return labels
        return np.ascontiguousarray(labels[:, : size[0], : size[1]])

    def confidences(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array | None:
        """Cut the labels' probability, float32 [N, H, W], to the frame's size."""
        if self.confidence is None:
            return None
        return outputs[self.confidence][:, : size[0], : size[1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresReader(OutputReader):
    """Of a graph that ends in scores.

    Attributes:
        class_axis: of the output: 1 for [N, C, h, w], 3 for [N, h, w, C], None for [N, h, w] of a
            single class.
        threshold: of a single class's score, above which a pixel is of the class.
    """

    class_axis: int | None = 1
    threshold: float = 0.0

    def labels(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array:
        """Enlarge the scores to the frame's size, and take the best class of each pixel.

        Returns:
            uint8 [N, H, W], or uint16 above 256 classes.
        """
        scores = self.low_scores(outputs)
        if self.shapes is not None:  # an artifact's scores are of the padded frame's size
            scores = scores[:, :, : size[0], : size[1]]
        return upsample_argmax(scores, size, threshold=self.threshold)

    def low_scores(self, outputs: Mapping[str, Array]) -> Array:
        """Give the scores, float32 [N, C, h, w], that labels are made of."""
        found = _classes_first(outputs[self.output], self.class_axis)
        return found if found.dtype == np.float32 else found.astype(np.float32)

    def upsampled(
        self, samples: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled]:
        """Say how scores [N, C, *samples] become labels of frames of (height, width) px.

        Raises:
            ExecutionError: there are fewer labels than the frames have pixels.
        """
        if self.shapes is not None:  # as above
            samples = min(samples[0], size[0]), min(samples[1], size[1])
        return Upsampled(samples[0], size[0]), Upsampled(samples[1], size[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PeeledScoresReader(ScoresReader):
    """Of a graph that was stopped at its scores: does what the rest of the graph would do."""

    peeled: PeeledTail

    def labels(self, outputs: Mapping[str, Array], size: tuple[int, int]) -> Array:
        """Enlarge the scores as the graph would, and take the best class of each pixel.

        Returns:
            uint8 [N, H, W], or uint16 above 256 classes.
        """
        scores = self.low_scores(outputs)
        rows, columns = self.enlarging((scores.shape[2], scores.shape[3]), self.padded(size))
        self._require_all((len(scores), rows.size, columns.size), size)
        parts = (AxisRegion(rows, 0, size[0]), AxisRegion(columns, 0, size[1]))
        return upsample_argmax_region(scores, *parts, threshold=self.threshold)

    def enlarging(
        self, samples: tuple[int, int], padded: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled]:
        """Give how the graph would enlarge them."""
        return self.peeled.upsampled(samples, padded)

    def upsampled(
        self, samples: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Upsampled, Upsampled]:
        """Say how the graph would enlarge them; as `ScoresReader.upsampled`."""
        rows, columns = self.enlarging(samples, self.padded(size))
        self._require_all((1, rows.size, columns.size), size)
        return rows, columns


def _classes_first(scores: Array, class_axis: int | None) -> Array:
    if class_axis is None:
        return scores[:, np.newaxis]  # [N, 1, h, w]
    return scores if class_axis == 1 else np.moveaxis(scores, class_axis, 1)  # [N, C, h, w]
