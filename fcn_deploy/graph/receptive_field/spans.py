"""Samples along an axis and the pixels they depend on; a tensor's axes; how two tensors meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from fcn_deploy.names import Array

__all__ = ["Features", "Span", "UntraceableError", "broadcast", "resample"]

_MAX_PHASES = 256
"""Real networks enlarge by 2 to 32; a ratio that would need more is that of one image only."""


class UntraceableError(Exception):
    """A graph does something that is not understood; the message is a phrase that says what."""


@dataclass(frozen=True, slots=True)
class Span:
    """What an axis of a tensor sees of the image: sample i depends on no other pixels than those
    from stride * i + low to stride * i + high, both included.

    Attributes:
        axis: of the image: 0 for its rows, 1 for its columns.
        stride: pixels from one sample to the next.
        low, high: in px.
    """

    axis: int
    stride: Fraction
    low: Fraction
    high: Fraction

    def union(self, other: Span) -> Span:
        """Give the span of what depends on both."""
        return replace(self, low=min(self.low, other.low), high=max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Features:
    """A tensor at one size of the image.

    Attributes:
        dims: its shape.
        spans: of each axis; None where the axis does not run along the image.
        value: of a small constant, or of sizes that were computed.
    """

    dims: tuple[int, ...]
    spans: tuple[Span | None, ...]
    value: Array | None = None

    @classmethod
    def constant(cls, dims: Sequence[int], value: Array | None = None) -> Features:
        """Make a tensor that does not depend on the image's pixels.

        Args:
            value: of shape `dims` and any dtype; None where it is not known.
        """
        return cls(tuple(dims), (None,) * len(dims), value)

    @property
    def is_spatial(self) -> bool:
        """Whether any axis runs along the image."""
        return any(span is not None for span in self.spans)


def resample(
    span: Span | None,
    *,
    up: int = 1,
    down: int = 1,
    reads: Callable[[int], tuple[int, int]] = lambda _: (0, 0),
) -> Span | None:
    """Give the span of samples computed from other samples, alike in every period.

    Args:
        up, down: `up` new samples stand in place of `down` old ones.
        reads: of the new sample up * m + r, the first and the last old one that it is computed
            from, less down * m; nothing where the first is behind the last.
    """
    if span is None:
        return None
    stride = span.stride * down / up
    ranges = [(r, *reads(r)) for r in range(min(up, _MAX_PHASES))]
    used = [one for one in ranges if one[1] <= one[2]] or [(0, 0, 0)]
    low = min(span.stride * first - stride * r for r, first, _ in used)
    high = max(span.stride * last - stride * r for r, _, last in used)
    return Span(span.axis, stride, span.low + low, span.high + high)


def broadcast(parts: Sequence[Features]) -> Features:
    """Give what an operator makes that works on its inputs element by element.

    Raises:
        UntraceableError: their axes do not fit.
    """
    rank = max(len(part.dims) for part in parts)
    dims = [1] * rank
    spans: list[Span | None] = [None] * rank
    for part in parts:
        offset = rank - len(part.dims)
        for axis, (size, span) in enumerate(zip(part.dims, part.spans, strict=True), start=offset):
            if size != 1 and dims[axis] not in (1, size):
                raise UntraceableError(f"meets sizes {dims[axis]} and {size}")
            dims[axis] = max(dims[axis], size)
            spans[axis] = _meet(spans[axis], span)
    return Features(tuple(dims), tuple(spans))


def _meet(one: Span | None, other: Span | None) -> Span | None:
    if one is None or other is None:
        return one or other
    if (one.axis, one.stride) != (other.axis, other.stride):
        raise UntraceableError(f"meets strides {one.stride} and {other.stride}")
    return one.union(other)
