"""Operators that slide a window over the image: convolutions, pools and resizing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from fcn_deploy.graph.receptive_field.spans import Features, Span, UntraceableError, resample
from fcn_deploy.graph.receptive_field.step import Step

__all__ = ["convolve", "convolve_transposed", "pool", "resize"]


@dataclass(frozen=True, slots=True)
class _Window:
    """Along one axis; padding is what is added before and behind, in samples."""

    size: int
    step: int
    dilation: int
    before: int
    behind: int

    @property
    def reach(self) -> int:
        """From the first sample it reads to the last."""
        return self.dilation * (self.size - 1)


def convolve(step: Step) -> Features:
    """Follow Conv and its quantized kin.

    Raises:
        UntraceableError: the weights' shape is not known.
    """
    weights = step.inputs[1] if len(step.inputs) > 1 else None
    if weights is None:
        raise UntraceableError("has no weights")
    return _slide(step, weights.dims[2:], channels=weights.dims[0])


def pool(step: Step) -> Features:
    """Follow MaxPool, AveragePool and LpPool."""
    return _slide(step, step.integers("kernel_shape", ()), channels=None)


def _slide(step: Step, sizes: tuple[int, ...], *, channels: int | None) -> Features:
    source = step.first
    if len(sizes) != len(source.dims) - 2:
        raise UntraceableError("has a window of another rank than its input")
    dims, spans = list(source.dims), list(source.spans)
    if channels is not None:
        dims[1] = channels
    for axis, window in enumerate(_windows(step, sizes), start=2):
        free = source.dims[axis] + window.before + window.behind - window.reach - 1
        count = free // window.step
        if channels is None and step.integer("ceil_mode", 0):
            count = -(-free // window.step)
            if count * window.step >= source.dims[axis] + window.before:
                count -= 1  # a window that would begin in the padding behind is left out
        if free < 0:
            raise UntraceableError("has a window larger than the image")
        dims[axis] = count + 1
        first, last = -window.before, -window.before + window.reach
        spans[axis] = _windowed(source.spans[axis], window.step, first, last)
    return Features(tuple(dims), tuple(spans))


def _windowed(span: Span | None, step: int, first: int, last: int) -> Span | None:
    return resample(span, down=step, reads=lambda _: (first, last))


def _windows(step: Step, sizes: tuple[int, ...]) -> list[_Window]:
    rank = len(sizes)
    strides = step.integers("strides", (1,) * rank)
    dilations = step.integers("dilations", (1,) * rank)
    pads = step.integers("pads", (0,) * 2 * rank)
    automatic = step.text("auto_pad", "NOTSET")
    windows = []
    for i, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True)):
        before, behind = pads[i], pads[rank + i]
        if automatic == "VALID":
            before = behind = 0
        elif automatic.startswith("SAME"):
            count = step.first.dims[2 + i]
            missing = (-(-count // stride) - 1) * stride + dilation * (size - 1) + 1 - count
            less, more = max(missing, 0) // 2, (max(missing, 0) + 1) // 2
            before, behind = (less, more) if automatic == "SAME_UPPER" else (more, less)
        windows.append(_Window(size, stride, dilation, before, behind))
    return windows


def convolve_transposed(step: Step) -> Features:
    """Follow ConvTranspose.

    Raises:
        UntraceableError: the weights' shape is not known.
    """
    source, weights = step.first, step.inputs[1] if len(step.inputs) > 1 else None
    if weights is None or len(weights.dims) != len(source.dims):
        raise UntraceableError("has no weights of its input's rank")
    if step.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in step.node.attributes:
        raise UntraceableError("computes its padding")
    extra = step.integers("output_padding", (0,) * (len(source.dims) - 2))
    dims, spans = list(source.dims), list(source.spans)
    dims[1] = weights.dims[1] * step.integer("group", 1)
    for axis, window in enumerate(_windows(step, weights.dims[2:]), start=2):
        grown = window.step * (source.dims[axis] - 1) + window.reach + 1
        dims[axis] = grown + extra[axis - 2] - window.before - window.behind
        spans[axis] = _spread(source.spans[axis], window)
    return Features(tuple(dims), tuple(spans))


def _spread(span: Span | None, window: _Window) -> Span | None:
    def reads(r: int) -> tuple[int, int]:
        place = r + window.before
        return -((window.reach - place) // window.step), place // window.step

    return resample(span, up=window.step, reads=reads)


def resize(step: Step) -> Features:
    """Follow Resize and the older Upsample, where they enlarge or shrink by a fixed ratio.

    Raises:
        UntraceableError: the ratio is not known before an image comes.
    """
    source = step.first
    if step.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UntraceableError("keeps the aspect ratio")
    axes = step.integers("axes", range(len(source.dims)))
    scales = step.value(1 if len(step.inputs) < 3 else 2)
    sizes = step.value(3)
    dims, spans = list(source.dims), list(source.spans)
    for i, named in enumerate(axes):
        axis = named % len(dims)
        if sizes is not None:
            dims[axis] = int(sizes.reshape(-1)[i])
            ratio = Fraction(dims[axis], source.dims[axis])
        elif scales is not None and scales.size:
            scale = float(scales.reshape(-1)[i])
            ratio = Fraction(scale).limit_denominator(64)
            dims[axis] = math.floor(source.dims[axis] * scale)
        else:
            raise UntraceableError("takes sizes that are not understood")
        if ratio <= 0:
            raise UntraceableError(f"resizes by {ratio}")
        spans[axis] = _resized(step, source.spans[axis], ratio)
    return Features(tuple(dims), tuple(spans))


def _resized(step: Step, span: Span | None, ratio: Fraction) -> Span | None:
    if span is None or ratio == 1:
        return span
    up, down = ratio.numerator, ratio.denominator
    default = "half_pixel" if len(step.inputs) > 2 else "asymmetric"
    coordinates = step.text("coordinate_transformation_mode", default)
    if coordinates == "align_corners":
        step.note("aligns corners, which depends on the image's size")
    elif coordinates not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        raise UntraceableError(f"has the coordinates {coordinates}")
    mode = step.text("mode", "nearest")
    reach = 1 if mode == "cubic" else 0
    if step.integer("antialias", 0) and ratio < 1:
        reach = (reach + 1) * -(-down // up)

    def reads(r: int) -> tuple[int, int]:
        place = Fraction(r * down, up)
        if coordinates != "asymmetric":
            place += Fraction(down, 2 * up) - Fraction(1, 2)
        return math.floor(place) - reach, math.ceil(place) + reach

    return resample(span, up=up, down=down, reads=reads)
