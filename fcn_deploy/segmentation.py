"""Hold the result of one frame: its labels, and the pictures and figures made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fcn_deploy import draw
from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.names import Array

__all__ = ["Segmentation"]


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The labels of one frame.

    Attributes:
        labels: uint8 [H, W] class ids in the frame's own coordinates, owned by the caller; uint16
            where there are more than 256 classes.
        classes: name and colour of each class id.
        scores: float32 [C, h, w] before upsampling, or None where they were not asked for.
        confidence: float32 [H, W], probability of the label, or None where the graph has none.
        frame_bgr: the frame that was given, not a copy: writing into it changes `overlay`.
        activate: makes probabilities [C, H, W] of `scores` and the labels' (H, W); None where the
            network hides them.
    """

    labels: Array
    classes: tuple[ClassInfo, ...] = field(repr=False)
    scores: Array | None = None
    confidence: Array | None = None
    frame_bgr: Array | None = None
    activate: Callable[[Array, tuple[int, int]], Array] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        parts = [f"labels={self.labels.dtype} {list(self.labels.shape)}"]
        if self.scores is not None:
            parts.append(f"scores=float32 {list(self.scores.shape)}")
        if self.confidence is not None:
            parts.append(f"confidence=float32 {list(self.confidence.shape)}")
        return f"Segmentation({', '.join(parts)}, {len(self.classes)} classes)"

    def probabilities(self) -> Array:
        """Give the probability of each class at each pixel, of a result that holds its scores.

        Scores are enlarged as the labels were made of them, and activated once: not those of a
        network that ends in a sigmoid or softmax itself.

        Returns:
            float32 [C, H, W] in 0..1 at the frame's size; [1, H, W] of a single class, the
            probability that it is there. Owned by the caller.

        Raises:
            ValueError: the result holds no scores, or what they are is not known.
        """
        if self.scores is None or self.activate is None:
            raise ValueError(
                "this result holds no scores; ask for them with segmenter(frame, scores=True)"
            )
        height, width = self.labels.shape
        return self.activate(self.scores, (height, width))

    def colorize(self) -> Array:
        """Paint each pixel in its class's colour: uint8 [H, W, 3], BGR, owned by the caller."""
        return draw.colorize(self.labels, [entry.color for entry in self.classes])

    def overlay(self, frame_bgr: Array | None = None, *, alpha: float = 0.5) -> Array:
        """Blend the class colours over a frame; black classes show the frame as it is.

        Args:
            frame_bgr: uint8 [H, W, 3]; None means the frame that was segmented.
            alpha: share of the colour, 0 to 1.

        Returns:
            uint8 [H, W, 3], BGR, owned by the caller.

        Raises:
            ShapeError: the frame is of another size than the labels.
            ValueError: alpha is outside 0..1, or there is no frame.
        """
        frame = self.frame_bgr if frame_bgr is None else frame_bgr
        if frame is None:
            raise ValueError("this result holds no frame; give one to overlay()")
        colors = [entry.color for entry in self.classes]
        return draw.overlay(frame, self.labels, colors, alpha=alpha)

    def shares(self) -> dict[str, float]:
        """Give the share of the pixels of each class, 0..1, by class name."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {
            entry.name: float(count) / self.labels.size
            for entry, count in zip(self.classes, counts, strict=False)
        }
