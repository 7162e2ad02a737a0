"""Scores to labels: bilinear upsampling and argmax, one class at a time in bounded memory."""

from __future__ import annotations

import numpy as np

from fcn_deploy.errors import NonFiniteOutputError, ShapeError
from fcn_deploy.tensors import Array

__all__ = ["upsample_argmax"]


def upsample_argmax(
    scores: Array, size: tuple[int, int], *, threshold: float = 0.0, out: Array | None = None
) -> Array:
    """Upsample class scores bilinearly (half-pixel centres) and give the best class of each pixel.

    Ties go to the lowest class, as in argmax. One class alone means binary: label 1 where its
    score is above the threshold.

    Args:
        scores: float32 [C, h, w]; not modified.
        size: (height, width) of the labels in px.
        threshold: of a single class's score; 0 for logits, 0.5 for probabilities.
        out: uint8 [height, width] (uint16 above 256 classes) to write the labels into.

    Returns:
        `out`, or a new array of that kind, owned by the caller.

    Raises:
        NonFiniteOutputError: a score is NaN or infinite.
        ShapeError: `scores` or `out` is of another shape or dtype.
    """
    import cv2

    if scores.ndim != 3 or 0 in scores.shape:
        raise ShapeError(f"scores have shape {list(scores.shape)}; expected [classes, h, w].")
    if not np.isfinite(scores).all():
        raise NonFiniteOutputError(
            "the network's scores hold NaN or infinity.",
            hint="Run it in fp32; if they stay, the weights or the input are at fault.",
        )
    dtype = np.dtype(np.uint8 if len(scores) <= 256 else np.uint16)
    if out is None:
        out = np.zeros(size, dtype)
    elif out.shape != size or out.dtype != dtype:
        raise ShapeError(f"out is {out.dtype} {list(out.shape)}; expected {dtype} {list(size)}.")
    else:
        out.fill(0)

    def upsampled(plane: Array) -> Array:
        plane = np.ascontiguousarray(plane, np.float32)
        if plane.shape == size:
            return plane
        resized: Array = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
        return resized

    best = upsampled(scores[0])
    if len(scores) == 1:
        np.greater(best, threshold, out=out, casting="unsafe")
        return out
    best = best.copy()
    for label in range(1, len(scores)):
        candidate = upsampled(scores[label])
        better = candidate > best
        np.copyto(best, candidate, where=better)
        out[better] = label
    return out
