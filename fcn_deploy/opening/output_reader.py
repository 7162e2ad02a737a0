"""From what a network gave to labels, scores and confidence of the frames' own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ExecutionError, NonFiniteOutputError
from fcn_deploy.head import upsample_argmax
from fcn_deploy.head.geometry import Upsampled, interpolate
from fcn_deploy.head.part import AxisPart, upsample_argmax_part
from fcn_deploy.names import Array
from fcn_deploy.opening.output_format import OutputFormat
from fcn_deploy.segmentation import Segmentation

__all__ = ["OutputReader"]


@dataclass(frozen=True, slots=True)
class OutputReader:
    """Reads what one network gives.

    Attributes:
        name: of its file, for messages.
        form: what its outputs mean.
        shapes: that frames are padded to; None where they are not padded.
    """

    name: str
    form: OutputFormat
    shapes: ShapeRange | None
    classes: tuple[ClassInfo, ...]

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
        form = self.form
        if form.kind == "labels":
            labels = self._crop_labels(outputs[form.name], size)
        else:
            labels = self._label(_classes_first(outputs[form.name], form.class_axis), size)
        all_scores = self.scores_of(outputs) if scores else None
        confidence = None
        if form.confidence is not None:
            confidence = outputs[form.confidence][:, : size[0], : size[1]]
        return [
            Segmentation(
                labels=labels[i],
                classes=self.classes,
                scores=None if all_scores is None else all_scores[i],
                confidence=None if confidence is None else np.ascontiguousarray(confidence[i]),
                frame_bgr=frame,
            )
            for i, frame in enumerate(frames_bgr)
        ]

    def scores_of(self, outputs: Mapping[str, Array]) -> Array:
        """Give the scores [N, C, h, w] before upsampling, of a run that gave them.

        Raises:
            NonFiniteOutputError: a score is NaN or infinite.
        """
        if self.form.inner_scores is None:
            found = _classes_first(outputs[self.form.name], self.form.class_axis)
        else:
            found = _classes_first(outputs[self.form.inner_scores], self.form.inner_class_axis)
        if not np.isfinite(found).all():
            raise NonFiniteOutputError(
                f"the scores of '{self.name}' hold NaN or infinity.",
                hint="Run it in fp32; if they stay, the weights or the input are at fault.",
            )
        return found

    def scores_at_pixels(self, scores: Array, size: tuple[int, int]) -> Array:
        """Enlarge one frame's scores [C, h, w] to (height, width) px, as its labels are made."""
        peeled = self.form.peeled
        padded = size if self.shapes is None else self.shapes.padded_size(*size)
        samples = scores.shape[1], scores.shape[2]
        axes = Upsampled(samples[0], padded[0]), Upsampled(samples[1], padded[1])
        if peeled is not None:
            axes = peeled.upsampled(samples, padded)
        return interpolate(scores, *axes)[:, : size[0], : size[1]].copy()

    def _label(self, scores: Array, size: tuple[int, int]) -> Array:
        """Give labels [N, H, W] of scores [N, C, h, w]."""
        padded = size if self.shapes is None else self.shapes.padded_size(*size)
        if self.form.peeled is None:
            if self.shapes is not None:  # an artifact's scores are of the padded frame's size
                scores = scores[:, :, : size[0], : size[1]]
            return upsample_argmax(scores, size, threshold=self.form.threshold)
        rows, columns = self.form.peeled.upsampled((scores.shape[2], scores.shape[3]), padded)
        if min(rows.size - size[0], columns.size - size[1]) < 0:
            raise self._labels_misfit([len(scores), rows.size, columns.size], size)
        parts = (AxisPart(rows, 0, size[0]), AxisPart(columns, 0, size[1]))
        return upsample_argmax_part(scores, *parts, threshold=self.form.threshold)

    def _crop_labels(self, labels: Array, size: tuple[int, int]) -> Array:
        """Cut labels [N, H, W] to the frame's size, as uint8, or uint16 above 256 classes."""
        if labels.ndim == 4 and labels.shape[1] == 1:
            labels = labels[:, 0]  # some exporters keep the axis of the classes
        if labels.ndim != 3 or labels.shape[1] < size[0] or labels.shape[2] < size[1]:
            raise self._labels_misfit(labels.shape, size)
        if labels.dtype not in (np.uint8, np.uint16):
            many = len(self.classes) > 256 or int(labels.max()) > 255
            labels = labels.astype(np.uint16 if many else np.uint8)
        if labels.shape[1:] == size:
            return labels
        return np.ascontiguousarray(labels[:, : size[0], : size[1]])

    def _labels_misfit(self, shape: Sequence[int], size: tuple[int, int]) -> ExecutionError:
        return ExecutionError(
            f"'{self.name}' gave labels {list(shape)} for frames of {list(size)}."
        )


def _classes_first(scores: Array, class_axis: int) -> Array:
    return scores if class_axis == 1 else np.moveaxis(scores, class_axis, 1)  # [N, C, h, w]
