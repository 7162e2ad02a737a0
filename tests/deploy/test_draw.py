"""Palette, colour maps and overlays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fcn_deploy.draw import colorize, overlay, side_by_side, voc_palette
from fcn_deploy.errors import ShapeError


def test_the_palette_is_pascal_vocs() -> None:
    palette = voc_palette(256)

    # from the VOC development kit's documentation: background, aeroplane, bicycle, person, void
    assert palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_pixel_gets_its_classes_colour_as_bgr(dtype: type[np.unsignedinteger[Any]]) -> None:
    labels = np.array([[0, 1], [2, 1]], dtype)

    painted = colorize(labels, [(0, 0, 0), (1, 2, 3), (250, 0, 7)])

    expected = [[(0, 0, 0), (3, 2, 1)], [(7, 0, 250), (3, 2, 1)]]
    np.testing.assert_array_equal(painted, np.array(expected, np.uint8))


@pytest.mark.parametrize(("dtype", "label"), [(np.uint8, 200), (np.uint16, 300)])
def test_a_label_without_a_colour_is_white(
    dtype: type[np.unsignedinteger[Any]], label: int
) -> None:
    painted = colorize(np.full((1, 1), label, dtype), [(0, 0, 0)])

    np.testing.assert_array_equal(painted, [[[255, 255, 255]]])


def test_more_than_256_classes_have_colours() -> None:
    painted = colorize(np.full((1, 1), 299, np.uint16), (*voc_palette(299), (9, 8, 7)))

    np.testing.assert_array_equal(painted, [[[7, 8, 9]]])


def test_an_overlay_blends_and_leaves_black_classes_alone() -> None:
    frame = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 2]], np.uint8)

    blended = overlay(frame, labels, [(0, 0, 0), (200, 0, 0), (0, 0, 0)], alpha=0.5)

    np.testing.assert_array_equal(blended[0], [[100, 100, 100], [50, 50, 150], [100, 100, 100]])
    assert (frame == 100).all()


@pytest.mark.parametrize("alpha", [0, 1])
def test_alpha_0_and_1_are_exact(alpha: float, rng: np.random.Generator) -> None:
    frame = rng.integers(0, 256, (5, 7, 3), np.uint8)
    labels = rng.integers(1, 4, (5, 7)).astype(np.uint8)
    colors = voc_palette(4)

    blended = overlay(frame, labels, colors, alpha=alpha)

    np.testing.assert_array_equal(blended, colorize(labels, colors) if alpha else frame)


def test_bad_arguments_are_named() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        overlay(frame, frame[..., 0], [(0, 0, 0)], alpha=1.5)
    with pytest.raises(ShapeError, match=r"frame is \[4, 4, 3\] and the labels are \[3, 4\]"):
        overlay(frame, frame[:3, :, 0], [(0, 0, 0)])


def test_side_by_side_puts_the_frame_left_of_the_picture() -> None:
    frame = np.zeros((4, 5, 3), np.uint8)

    joined = side_by_side(frame, frame + 1)

    assert joined.shape == (4, 10, 3)
    assert not joined[:, :5].any()
    assert (joined[:, 5:] == 1).all()
