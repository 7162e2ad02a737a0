"""Draw labels as pictures: the PASCAL VOC palette, colour maps and overlays, all in BGR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcn_deploy.errors import ShapeError
from fcn_deploy.names import Array

__all__ = ["colorize", "overlay", "side_by_side", "voc_palette"]

ColorRgb = tuple[int, int, int]


def voc_palette(count: int) -> tuple[ColorRgb, ...]:
    """Generate the colours of PASCAL VOC, (red, green, blue) in 0..255; class 0 is black.

    The bits of the class number, from the lowest, go in turn to the highest free bit of red, green
    and blue (VOCcode's VOClabelcolormap).
    """

    def color(label: int) -> ColorRgb:
        channels = [0, 0, 0]
        for bit in range(24):
            channels[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
        return channels[0], channels[1], channels[2]

    return tuple(color(label) for label in range(count))


def colorize(labels: Array, colors: Sequence[ColorRgb]) -> Array:
    """Paint each pixel in its class's colour.

    Args:
        labels: uint8 or uint16 [H, W]; a label without a colour is painted white.
        colors: (red, green, blue) of each class.

    Returns:
        uint8 [H, W, 3], BGR, owned by the caller.
    """
    import cv2

    table = np.full((max(256, len(colors)), 3), 255, np.uint8)
    if colors:
        table[: len(colors)] = np.asarray(colors, np.uint8)[:, ::-1]
    if labels.dtype == np.uint8:
        # three times as fast as indexing the table
        painted: Array = cv2.LUT(cv2.merge([labels] * 3), table[None, :256])
        return painted
    return table[np.minimum(labels, len(table) - 1)]


def overlay(
    frame_bgr: Array, labels: Array, colors: Sequence[ColorRgb], *, alpha: float = 0.5
) -> Array:
    """Blend the class colours over a frame; pixels of black classes show the frame as it is.

    Args:
        frame_bgr: uint8 [H, W, 3]; not modified.
        labels: uint8 or uint16 [H, W].
        alpha: share of the colour, 0 (frame alone) to 1 (colour alone).

    Returns:
        uint8 [H, W, 3], BGR, owned by the caller.

    Raises:
        ShapeError: frame and labels differ in size.
        ValueError: alpha is outside 0..1.
    """
    import cv2

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be 0 to 1")
    if frame_bgr.shape[:2] != labels.shape:
        raise ShapeError(
            f"the frame is {list(frame_bgr.shape)} and the labels are {list(labels.shape)}; "
            "height and width must agree."
        )
    blended: Array = cv2.addWeighted(frame_bgr, 1 - alpha, colorize(labels, colors), alpha, 0)
    black = [label for label, color in enumerate(colors) if not any(color)]
    if black:
        unpainted = np.isin(labels, black) if len(black) > 1 else labels == black[0]
        cv2.copyTo(frame_bgr, unpainted.view(np.uint8), blended)
    return blended


def side_by_side(frame_bgr: Array, picture_bgr: Array) -> Array:
    """Put a frame left of a picture of it, both uint8 [H, W, 3]: uint8 [H, 2 W, 3]."""
    return np.concatenate([frame_bgr, picture_bgr], axis=1)
