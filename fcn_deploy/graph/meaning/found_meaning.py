"""The record of what one output of a network means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Activation", "FoundMeaning"]

Activation = Literal["logits", "sigmoid", "softmax", "log_softmax", "ids", "unknown"]
"""What scores are; ``"ids"`` are labels already."""


@dataclass(frozen=True, slots=True)
class FoundMeaning:
    """What one output of a network means.

    Attributes:
        output: its name; of a query network that of the masks.
        kind: ``"scores"``, ``"labels"``, or ``"queries"`` where another output says of which class
            each mask is.
        activation: what was applied to the scores already.
        class_axis: of the classes: 1 for [N, C, H, W], 3 for [N, H, W, C]; of ids the axis of size
            one. None for [N, H, W], and where it is not known.
        num_classes: None where the graph does not say.
        threshold: probability above which a single class is there; None for several classes.
        evidence: what was found, a phrase.
        rank: number of axes; None where the graph does not say.
        overshoots: interpolation may have taken probabilities a little out of 0..1.
        asked: the user said so; the graph did not.
        class_output: name of a query network's classes, [N, Q, C + 1].
    """

    output: str
    kind: Literal["scores", "labels", "queries"]
    activation: Activation
    class_axis: int | None
    num_classes: int | None
    threshold: float | None
    evidence: str
    rank: int | None = None
    overshoots: bool = False
    asked: bool = False
    class_output: str | None = None

    @property
    def score_threshold(self) -> float | None:
        """Give the output's value above which a single class is there; None for several."""
        if self.threshold is None or self.activation != "logits":
            return self.threshold
        return math.log(self.threshold / (1 - self.threshold))
