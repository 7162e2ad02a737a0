"""An independent reference for the head: every class at every pixel, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.head.geometry import make_axis
from fcn_deploy.names import Array

__all__ = ["Interpolated", "interpolate"]

_ROUNDINGS = 16
"""Half units in the last place that both sides may be off: four or five operations on two classes
and in the bar that a class must reach, each rounded."""

_SMALLEST = 2.0**-149


@dataclass(frozen=True, slots=True)
class Interpolated:
    """Scores at the pixels.

    Attributes:
        scores: float64 [C, H, W], exact to 1e-15 or so.
        tolerance: float64 [H, W]: what float32's rounding may amount to at each pixel, from the
            greatest score around it.
    """

    scores: Array
    tolerance: Array

    @property
    def labels(self) -> Array:
        best: Array = self.scores.argmax(0)
        return best

    def shortfall(self, labels: Array) -> Array:
        """Give by how much the scores of given labels miss the best ones, [H, W]."""
        chosen = np.take_along_axis(self.scores, labels[np.newaxis].astype(np.intp), 0)[0]
        missed: Array = self.scores.max(0) - chosen
        return missed

    def allows(self, labels: Array) -> bool:
        """Say whether each label is the best, or as good as the best within rounding."""
        return bool((self.shortfall(labels) <= self.tolerance).all())


def interpolate(
    scores: Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    factors: tuple[int, int] | None = None,
    lead: tuple[float, float] = (0.0, 0.0),
) -> Interpolated:
    """Interpolate [C, h, w] to the pixels of `size`; float32 weights, float64 arithmetic.

    Args:
        factors: whole, with powers of two as weights; None where they follow from the sizes.
        lead: (height, width), pixels that are left out before the first, with factors.
    """
    exact = scores.astype(np.float64)
    largest = np.abs(exact).max(0, keepdims=True)
    for axis, outputs in ((1, size[0]), (2, size[1])):
        samples = scores.shape[axis]
        if factors is None:
            geometry = make_axis(samples, outputs, align_corners=align_corners)
            before, far = geometry.cells, geometry.far[:outputs].astype(np.float64)
        else:
            place = (np.arange(outputs) + lead[axis - 1] + 0.5) / factors[axis - 1] - 0.5
            place = place.clip(0, samples - 1)
            before = place.astype(int)
            far = place - before
        behind = np.minimum(before + 1, samples - 1)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        far = far.reshape(shape)
        exact = exact.take(before, axis) * (1 - far) + exact.take(behind, axis) * far
        largest = np.maximum(largest.take(before, axis), largest.take(behind, axis))
    return Interpolated(exact, _ROUNDINGS * (2.0**-24 * largest[0] + _SMALLEST))
