"""Where tiles are cut: every pixel has one, none is too large, all see what they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy.graph.receptive_field import Span
from fcn_deploy.head.geometry import Upsampled
from fcn_deploy.tiling.layout import (
    Cut,
    LabelAxis,
    cut_axis,
    least_tile_px,
    tile_sides,
    whole_samples,
)


@dataclass(frozen=True)
class Axis:
    """An axis of a frame, what a sample sees along it, and how large tiles may be."""

    length: int
    span: Span
    alignment: int
    tile_px: int
    scores: bool

    @property
    def labels(self) -> LabelAxis:
        if not self.scores:
            return LabelAxis.of_labels(self.length)
        samples = math.ceil(self.length / self.span.stride)
        return LabelAxis.of_scores(Upsampled(samples, self.length))

    def cuts(self) -> tuple[Cut, ...]:
        return cut_axis(
            self.length,
            span=self.span,
            alignment=self.alignment,
            tile_px=self.tile_px,
            labels=self.labels,
        )


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    scores = draw(st.booleans())
    stride = draw(st.sampled_from((1, 2, 3, 4, 8, 32))) if scores else 1
    alignment = stride * draw(st.sampled_from((1, 2, 4)))
    low, high = draw(st.integers(-60, 0)), draw(st.integers(0, 60))
    span = Span(0, Fraction(stride), Fraction(low), Fraction(high))
    tile = least_tile_px(span, alignment) + alignment * draw(st.integers(0, 6))
    return Axis(draw(st.integers(1, 700)), span, alignment, tile, scores)


@given(axes())
def test_every_label_has_exactly_one_tile(axis: Axis) -> None:
    cuts = axis.cuts()

    edges = [0, *(cut.end for cut in cuts)]
    assert [cut.begin for cut in cuts] == edges[:-1]
    assert edges[-1] == axis.length
    assert all(cut.begin < cut.end for cut in cuts)


@given(axes())
def test_tiles_lie_in_the_frame_within_the_limit_and_begin_at_the_stride(axis: Axis) -> None:
    for cut in axis.cuts():
        assert 0 <= cut.start < cut.stop <= axis.length
        assert cut.size <= axis.tile_px
        assert cut.start % axis.alignment == 0
        assert cut.first_sample * axis.span.stride == cut.start
        # a tile that ends inside the frame has no rest that could be padded
        assert cut.stop == axis.length or cut.size % axis.alignment == 0


@given(axes())
def test_all_but_the_last_tile_are_of_one_size(axis: Axis) -> None:
    sizes = {cut.size for cut in axis.cuts()[:-1]}

    assert len(sizes) <= 1


@given(axes())
def test_a_tile_sees_all_that_its_labels_depend_on(axis: Axis) -> None:
    labels, span = axis.labels, axis.span

    for cut in axis.cuts():
        for label in range(cut.begin, cut.end):
            first = int(labels.nearest[label])
            last = min(first + labels.reach, labels.samples - 1)
            # what lies outside of the frame is padding, which a tile at that border has too
            assert max(Fraction(0), span.stride * first + span.low) >= cut.start
            assert min(Fraction(axis.length - 1), span.stride * last + span.high) <= cut.stop - 1


@given(axes())
def test_samples_a_tile_computes_as_the_frame_does_see_nothing_outside_of_it(axis: Axis) -> None:
    samples = axis.labels.samples

    for cut in axis.cuts():
        first, last = whole_samples(axis.span, (cut.start, cut.stop), axis.length, samples=samples)
        seen_from = axis.span.stride * first + axis.span.low
        seen_to = axis.span.stride * last + axis.span.high
        assert cut.start == 0 or seen_from >= cut.start
        assert cut.stop == axis.length or seen_to <= cut.stop - 1
        assert 0 <= first <= last <= samples - 1


@given(axes(), st.integers(1, 4))
def test_labels_of_padding_are_left_out(axis: Axis, behind: int) -> None:
    kept = max(1, axis.length - behind)

    cuts = cut_axis(
        axis.length,
        span=axis.span,
        alignment=axis.alignment,
        tile_px=axis.tile_px,
        labels=axis.labels.until(kept),
    )

    assert cuts[-1].end == kept


def test_tiles_too_small_for_what_a_sample_sees_are_refused() -> None:
    span = Span(0, Fraction(1), Fraction(-20), Fraction(20))

    with pytest.raises(ValueError, match="tiles of 32 px are too small for what a sample sees"):
        cut_axis(200, span=span, alignment=1, tile_px=32, labels=LabelAxis.of_labels(200))


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.tuples(axes(), axes()),
    st.integers(1, 4_000_000),
)
def test_sides_keep_to_the_limit_unless_the_halo_alone_takes_more(
    size: tuple[int, int], both: tuple[Axis, Axis], tile_pixels: int
) -> None:
    spans = both[0].span, both[1].span
    alignment = both[0].alignment, both[1].alignment
    least = [least_tile_px(span, step) for span, step in zip(spans, alignment, strict=True)]

    sides = tile_sides(size, spans=spans, alignment=alignment, tile_pixels=tile_pixels)

    for side, low, step, whole in zip(sides, least, alignment, size, strict=True):
        assert side >= low
        # the last part of a frame as long as the tile may be no full step
        assert side % step == 0
        assert side <= max(low, whole + step - 1)
    ran = [min(side, whole) for side, whole in zip(sides, size, strict=True)]
    if all(side > low for side, low in zip(sides, least, strict=True)):
        assert math.prod(ran) <= tile_pixels


def test_the_smallest_tile_holds_what_a_label_sees_and_a_step_to_begin_at() -> None:
    span = Span(0, Fraction(8), Fraction(-29), Fraction(36))

    # 65 px seen between the ends, 16 for the two samples of a label, 16 to begin at a step
    assert least_tile_px(span, 16) == math.ceil((65 + 16 + 16) / 16) * 16


def test_a_label_of_upsampled_scores_depends_on_the_sample_behind_too() -> None:
    axis = LabelAxis.of_scores(Upsampled(4, 16))

    assert axis.reach == 1
    assert axis.samples == 4
    assert axis.nearest.tolist() == sorted(axis.nearest.tolist())
    assert np.all((axis.nearest >= 0) & (axis.nearest < 4))
