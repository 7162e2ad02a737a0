"""Ranges of shapes check themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy.artifact.shape_range import ShapeRange


def test_it_iterates_min_opt_max() -> None:
    shapes = ShapeRange((1, 2, 3), (4, 5, 6), (7, 8, 9))

    assert list(shapes) == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


@pytest.mark.parametrize(
    ("low", "usual", "high", "name"),
    [
        ((0, 1, 1), (1, 1, 1), (1, 1, 1), "batch"),
        ((1, 5, 1), (1, 4, 1), (1, 9, 1), "height"),
        ((1, 1, 1), (1, 1, 9), (1, 1, 8), "width"),
    ],
)
def test_a_decreasing_range_is_named(
    low: tuple[int, int, int], usual: tuple[int, int, int], high: tuple[int, int, int], name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} has min"):
        ShapeRange(low, usual, high)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64))
def test_padding_is_the_least_that_fits(height: int, width: int, step: int) -> None:
    shapes = ShapeRange((1, 1, 1), (1, 1, 1), (1, 1, 1), multiple_of=step)

    padded = shapes.padded_size(height, width)

    for size, whole in zip((height, width), padded, strict=True):
        assert whole % step == 0
        assert 0 <= whole - size < step
