"""Record what a graph's output means, and where the runtime may stop the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fcn_deploy.errors import ManifestError

__all__ = [
    "Activation",
    "ClassAxis",
    "Coordinates",
    "Finish",
    "OutputMeaning",
]

Activation = Literal["logits", "sigmoid", "softmax", "ids"]
"""What scores are; ``"ids"`` of labels whose scores are not known."""

ClassAxis = Literal[1, 3]
"""Axis of the classes in scores [N, C, h, w] and [N, h, w, C]."""

Coordinates = Literal["half_pixel", "pytorch_half_pixel", "align_corners"]
"""ONNX's names for how a Resize maps an output pixel to the scores, as far as the head can."""

_MOST_PX = 1 << 16
_MOST_BYTES_PER_PX = 1 << 29


@dataclass(frozen=True, slots=True)
class Finish:
    """What a runtime does with the scores that it stopped at; the fields are `PeeledTail`'s.

    Raises:
        ManifestError: a field is none of its choices.
    """

    coordinates: Coordinates
    factors: tuple[int, int] | None
    threshold: float
    lead: tuple[float, float] = (0.0, 0.0)
    surplus: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        pairs: list[Sequence[float]] = [self.lead, self.surplus]
        pairs += [] if self.factors is None else [self.factors]
        if self.factors is not None and min(self.factors) < 1:
            raise ManifestError(f"output.finish.factors is {self.factors}; expected 1 or more.")
        if any(abs(px) > _MOST_PX for pair in pairs for px in pair):
            raise ManifestError(f"output.finish is {self}; expected at most {_MOST_PX} px.")


@dataclass(frozen=True, slots=True)
class OutputMeaning:
    """What the output of a graph means.

    Attributes:
        activation: of the output where it is scores; else of the scores that it is made of.
        threshold: probability above which a single class is there; None where it is not known.
        class_axis: of an output of scores: 1 for [N, C, H, W], 3 for [N, H, W, C], None for
            [N, H, W] of a single class.
        stop_at: the tensor of scores [N, C, h, w] at which a runtime may stop; None: it may not.
        finish: how it makes the labels then.
        scores: the tensor that holds the class scores before upsampling, for who runs the whole
            graph; None where it is the output itself, or not known.
        scores_class_axis: of that tensor.
        scores_activation: of that tensor; None where it is `activation`.
        whole_because: why a runtime may not stop before the graph's own labels, a phrase; None
            where it may, or where the graph does not make labels of scores.
        bytes_per_px: that a run up to `stop_at`, or of the whole graph without it, holds at once
            for each pixel of the image; None where it could not be told.

    Raises:
        ManifestError: a field is none of its choices, or contradicts another.
    """

    activation: Activation
    threshold: float | None = 0.5
    class_axis: ClassAxis | None = 1
    stop_at: str | None = None
    finish: Finish | None = None
    scores: str | None = None
    scores_class_axis: ClassAxis | None = 1
    whole_because: str | None = None
    bytes_per_px: float | None = None
    scores_activation: Activation | None = None

    def __post_init__(self) -> None:
        if (self.stop_at is None) != (self.finish is None):
            raise ManifestError("output.stop_at and output.finish are not given both, or neither.")
        if self.bytes_per_px is not None and not 0 < self.bytes_per_px <= _MOST_BYTES_PER_PX:
            raise ManifestError(
                f"output.bytes_per_px is {self.bytes_per_px}; "
                f"expected above 0, at most {_MOST_BYTES_PER_PX}."
            )

    @property
    def score_threshold(self) -> float:
        """The score of a single class above which a pixel is of the class."""
        if self.threshold is None:
            return 0.0
        if self.activation != "logits":
            return self.threshold
        if not 0 < self.threshold < 1:
            return math.copysign(math.inf, self.threshold - 0.5)
        return math.log(self.threshold / (1 - self.threshold))

    @property
    def holds_labels(self) -> bool:
        """Whether the output holds class ids, and not scores."""
        return self.makes_labels or self.activation == "ids"

    @property
    def makes_labels(self) -> bool:
        """Whether the graph is known to make its labels of scores."""
        return self.stop_at is not None or self.whole_because is not None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Give the names that must be in the graph."""
        return tuple(name for name in (self.stop_at, self.scores) if name is not None)
