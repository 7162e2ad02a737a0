"""Which heights and widths a network takes, found by trying it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ExecutionError, UnsupportedModelError
from fcn_models.foreign_errors import first_line

__all__ = ["STEPS", "RunSize", "SizeRule", "find_only_size", "find_size_rule", "fit_shapes"]

log = logging.getLogger(__name__)

STEPS = (1, 2, 4, 7, 8, 12, 14, 16, 24, 28, 32, 48, 56, 64)
"""Steps in px that are tried, the finest first: of strides, and of patches and their windows."""

_USUAL_SIDES = (64, 128, 256)  # px around which sizes are tried; small ones are quick

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
    run: RunSize,
    *,
    min_size: tuple[int, int],
    max_size: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> SizeRule:
    """Find the finest step at which all tried sizes work, and the smallest size from `min_size` on.

    Sizes around 64 px are tried first, then larger ones, up to those that are asked for: some
    networks have a least size. Scores that are larger than the image count as a refusal.

    Args:
        run: runs the network once; its errors count as refusals.
        min_size, max_size: (height, width) in px, the range that is asked for.
        size: the usual (height, width) in px; None means that nobody said.

    Raises:
        UnsupportedModelError: no step works; the network's own last error is chained.
    """
    trial = _Trial(run)
    asked = (*min_size, *(size or min_size))
    sides = sorted({*_USUAL_SIDES, *(side for side in asked if side > _USUAL_SIDES[0])})
    for place, side in enumerate(sides):
        found = _finest_step(trial, STEPS, side)
        if found is None:
            continue
        if found[0] > 1 and place + 1 < len(sides):
            # a least size looks like a coarse step around it
            finer = tuple(step for step in STEPS if step < found[0])
            found = _finest_step(trial, finer, sides[place + 1]) or found
        step, full = found
        return SizeRule(step, _smallest_size(trial, step, min_size, max_size), full)
    raise _no_size(trial, size or min_size) from trial.refusal


def find_only_size(run: RunSize, size: tuple[int, int]) -> SizeRule:
    """Give the rule of a network that is used at one (height, width) in px alone.

    Raises:
        UnsupportedModelError: it refuses this size; its own error is chained.
    """
    trial = _Trial(run)
    scores = trial.takes(*size)
    if scores is None:
        said = "nothing" if trial.refusal is None else first_line(trial.refusal)
        raise UnsupportedModelError(
            f"the network refuses the only size that is asked for, {size[0]}x{size[1]} px: {said}",
            hint="Choose another with --size, --min-size and --max-size.",
        ) from trial.refusal
    return SizeRule(1, size, scores == size)


@dataclass(slots=True)
class _Trial:
    """Tries sizes, and remembers the last refusal."""

    run: RunSize
    refusal: BaseException | None = None
    refused: tuple[int, int] = (0, 0)

    def takes(self, height: int, width: int) -> tuple[int, int] | None:
        """Give the scores' size; None where the network refuses the image's."""
        try:
            scores = self.run(height, width)
            if scores[0] > height or scores[1] > width:
                raise ValueError(f"the scores are {scores[0]}x{scores[1]}, larger than the image")
        except _REFUSALS as error:
            log.debug("%dx%d px is refused: %s", height, width, error)
            self.refusal, self.refused = error, (height, width)
            return None
        return scores


def _finest_step(trial: _Trial, steps: tuple[int, ...], side: int) -> tuple[int, bool] | None:
    """Give the first step that works around `side` px, and whether scores have full size."""
    for step in steps:
        full = True
        for size in _trial_sizes(step, side):
            scores = trial.takes(*size)
            if scores is None:
                break
            full = full and scores == size
        else:
            return step, full
    return None


def _no_size(trial: _Trial, size: tuple[int, int]) -> UnsupportedModelError:
    """Say what the network refused last, and what it does take: equal sides, or one size."""
    refusal, (height, width) = trial.refusal, trial.refused
    said = "nothing" if refusal is None else first_line(refusal)
    taken = next((each for each in _single_sizes(size) if trial.takes(*each)), None)
    trial.refusal = refusal
    one = "HxW" if taken is None else f"{taken[0]}x{taken[1]}"
    takes = "" if taken is None else f"; it takes {one} px"
    return UnsupportedModelError(
        f"the network takes no size that was tried, up to multiples of {STEPS[-1]} px{takes}; "
        f"at {height}x{width} it said: {said}",
        hint="Make it fully convolutional (no Flatten and Linear after the last convolution, no "
        "position table of one size; timm's vision transformers have dynamic_img_size=True, "
        "--arch-arg dynamic_img_size=True), or export it for one size: "
        f"--size {one} --min-size {one} --max-size {one}.",
    )


def _single_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes that networks of one size are often made for: the one asked for, then equal sides."""
    sides = (min(size), 512, 224, 384, 256, 128, 64, 336, 518)
    return tuple(dict.fromkeys((size, *((side, side) for side in sides))))


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


def _trial_sizes(step: int, side: int) -> list[tuple[int, int]]:
    """Sizes around `side` px and above, with different remainders modulo larger steps."""
    first = max(1, side // step) | 1
    multiples = [first + extra for extra in range(8 if step < 8 else 4)]
    heights, widths = multiples[::2], multiples[1::2]
    return [(h * step, w * step) for h, w in zip(heights, reversed(widths), strict=True)]


def _smallest_size(
    trial: _Trial, step: int, min_size: tuple[int, int], max_size: tuple[int, int]
) -> tuple[int, int]:
    """Try sizes from `min_size` upward, by half as much again each time."""
    growth = 0
    while True:
        height, width = (
            -(-min(round(low * 1.5**growth), high) // step) * step
            for low, high in zip(min_size, max_size, strict=True)
        )
        if trial.takes(height, width) is not None:
            return height, width
        if height >= max_size[0] and width >= max_size[1]:
            said = "nothing" if trial.refusal is None else first_line(trial.refusal)
            raise UnsupportedModelError(
                f"the network takes no size from {min_size[0]}x{min_size[1]} to "
                f"{max_size[0]}x{max_size[1]} that was tried; at the largest it said: {said}",
                hint="Choose another range with --min-size and --max-size.",
            ) from trial.refusal
        growth += 1
