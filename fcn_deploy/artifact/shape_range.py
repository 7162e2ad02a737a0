"""Define a range of input shapes: smallest, usual and largest batch, height and width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BatchShape", "ShapeRange"]

BatchShape = tuple[int, int, int]
"""Batch, height and width, in this order."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes that an artifact was made and verified for; iterates min, opt, max.

    Attributes:
        min, opt, max: (batch, height, width) each, with min <= opt <= max in every entry.
        multiple_of: height and width that the network takes must be multiples of this many
            pixels; 1 for a network that takes any size.
    """

    min: BatchShape
    opt: BatchShape
    max: BatchShape
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.multiple_of < 1:
            raise ValueError(f"multiple_of is {self.multiple_of}; it must be 1 or more")
        names = ("batch", "height", "width")
        for name, low, usual, high in zip(names, self.min, self.opt, self.max, strict=True):
            if not 1 <= low <= usual <= high:
                raise ValueError(
                    f"{name} has min {low}, opt {usual}, max {high}; "
                    "they must be 1 or more and must not decrease"
                )

    def __iter__(self) -> Iterator[BatchShape]:
        return iter((self.min, self.opt, self.max))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Give the smallest (height, width) in px that holds this size and fits the multiple."""
        step = self.multiple_of
        return -(-height // step) * step, -(-width // step) * step
