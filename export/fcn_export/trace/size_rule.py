"""Which heights and widths a network takes, found by trying it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ExecutionError, UnsupportedModelError
from fcn_models.foreign_errors import first_line

__all__ = ["STEPS", "SizeRule", "find_size_rule", "fit_shapes"]

log = logging.getLogger(__name__)

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps in px that are tried, the finest first."""

# what PyTorch and users' own checks raise for a size that does not fit
_REFUSALS = (
    RuntimeError,
    ValueError,
    IndexError,
    AssertionError,
    ZeroDivisionError,
    TypeError,
    ExecutionError,
)

RunSize = Callable[[int, int], tuple[int, int]]
"""Run the network once at (height, width) in px; gives its scores' height and width."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Sizes that a network takes.

    Attributes:
        multiple_of: in px; height and width must be multiples of it.
        min_size: smallest (height, width) in px that worked.
        full_resolution: the scores had the input's size at every size that was tried.
    """

    multiple_of: int
    min_size: tuple[int, int]
    full_resolution: bool


def find_size_rule(
    run: RunSize, *, min_size: tuple[int, int], max_size: tuple[int, int]
) -> SizeRule:
    """Find the finest step at which all tried sizes work, and the smallest size from `min_size` on.

    Args:
        run: runs the network once; its errors count as refusals.
        min_size, max_size: (height, width) in px, the range that is asked for.

    Raises:
        UnsupportedModelError: no step works; the network's own last error is chained.
    """
    refusal: BaseException | None = None
    for step in STEPS:
        try:
            full = [run(*size) == size for size in _trial_sizes(step)]
        except _REFUSALS as error:
            log.debug("sizes in steps of %d px are refused: %s", step, error)
            refusal = refusal or error
            continue
        smallest = _smallest_size(run, step, min_size, max_size)
        return SizeRule(step, smallest, all(full))
    first = _trial_sizes(1)[0]
    said = "nothing" if refusal is None else first_line(refusal)
    raise UnsupportedModelError(
        f"the network takes no size that was tried, up to multiples of {STEPS[-1]} px; "
        f"at {first[0]}x{first[1]} it said: {said}",
        hint="A network with a fixed input size cannot be exported: make it fully convolutional "
        "(no Flatten and Linear after the last convolution).",
    ) from refusal


def fit_shapes(shapes: ShapeRange, rule: SizeRule) -> ShapeRange:
    """Widen a range, in steps of a network's multiple, so that the network takes its ends."""
    step = rule.multiple_of

    def up(*lengths: int) -> int:
        return -(-max(lengths) // step) * step

    low = tuple(
        up(asked, least) for asked, least in zip(shapes.min[1:], rule.min_size, strict=True)
    )
    opt = tuple(up(asked, least) for asked, least in zip(shapes.opt[1:], low, strict=True))
    high = tuple(up(asked, usual) for asked, usual in zip(shapes.max[1:], opt, strict=True))
    return ShapeRange(
        (shapes.min[0], low[0], low[1]),
        (shapes.opt[0], opt[0], opt[1]),
        (shapes.max[0], high[0], high[1]),
        step,
    )


def _trial_sizes(step: int) -> list[tuple[int, int]]:
    """Sizes around 64 px and above, with different remainders modulo larger steps."""
    first = max(1, 64 // step) | 1
    multiples = [first + extra for extra in range(8 if step < 8 else 4)]
    heights, widths = multiples[::2], multiples[1::2]
    return [(h * step, w * step) for h, w in zip(heights, reversed(widths), strict=True)]


def _smallest_size(
    run: RunSize, step: int, min_size: tuple[int, int], max_size: tuple[int, int]
) -> tuple[int, int]:
    """Try sizes from `min_size` upward, by half as much again each time."""
    growth = 0
    while True:
        height, width = (
            -(-min(round(low * 1.5**growth), high) // step) * step
            for low, high in zip(min_size, max_size, strict=True)
        )
        try:
            run(height, width)
        except _REFUSALS as error:
            log.debug("%dx%d px is refused: %s", height, width, error)
            if height >= max_size[0] and width >= max_size[1]:
                raise UnsupportedModelError(
                    f"the network takes no size from {min_size[0]}x{min_size[1]} to "
                    f"{max_size[0]}x{max_size[1]} that was tried; at the largest it said: "
                    f"{first_line(error)}",
                    hint="Choose another range with --min-size and --max-size.",
                ) from error
        else:
            return height, width
        growth += 1
