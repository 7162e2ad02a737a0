"""Which sizes a network takes is found by trying it."""

from __future__ import annotations

import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_export.trace.size_rule import (
    STEPS,
    SizeRule,
    find_only_size,
    find_size_rule,
    fit_shapes,
)


def runs_in_steps_of(step: int, *, least: int = 1, scale: int = 1):  # type: ignore[no-untyped-def]
    """A network that takes multiples of `step` px from `least` on."""

    def run(height: int, width: int) -> tuple[int, int]:
        if height % step or width % step or min(height, width) < least:
            raise RuntimeError(f"Sizes of tensors must match: {height}x{width}\nmore")
        return height // scale, width // scale

    return run


@pytest.mark.parametrize("step", STEPS)
def test_the_finest_step_that_works_is_found(step: int) -> None:
    rule = find_size_rule(runs_in_steps_of(step), min_size=(64, 64), max_size=(512, 512))

    least = -(-64 // step) * step
    assert rule == SizeRule(step, (least, least), full_resolution=True)


def test_scores_smaller_than_the_input_are_noticed() -> None:
    rule = find_size_rule(runs_in_steps_of(1, scale=8), min_size=(64, 64), max_size=(512, 512))

    assert not rule.full_resolution


def test_the_smallest_size_that_works_is_found() -> None:
    # at 60x60 and above; sizes that are tried for the step are all larger
    rule = find_size_rule(runs_in_steps_of(4, least=60), min_size=(30, 40), max_size=(512, 512))

    assert rule.min_size == (68, 92)


def test_a_least_size_above_the_usual_ones_is_no_coarse_step() -> None:
    found = [
        find_size_rule(runs_in_steps_of(step, least=least), min_size=(64, 64), max_size=(512, 512))
        for step, least in ((1, 70), (16, 128), (1, 200))
    ]

    assert [rule.multiple_of for rule in found] == [1, 16, 1]
    assert [rule.min_size for rule in found] == [(96, 96), (144, 144), (216, 216)]


def test_the_sizes_that_are_asked_for_are_tried() -> None:
    rule = find_size_rule(
        runs_in_steps_of(1, least=400), min_size=(64, 64), max_size=(900, 900), size=(640, 640)
    )

    assert rule == SizeRule(1, (486, 486), full_resolution=True)


def test_scores_larger_than_the_image_refuse_that_step_alone() -> None:
    def run(height: int, width: int) -> tuple[int, int]:
        return (height + 1) // 2 * 2, (width + 1) // 2 * 2

    rule = find_size_rule(run, min_size=(63, 63), max_size=(512, 512))

    assert rule == SizeRule(2, (64, 64), full_resolution=True)


def test_scores_that_are_always_larger_than_the_image_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"scores are .*, larger than the image"):
        find_size_rule(lambda h, w: (2 * h, 2 * w), min_size=(64, 64), max_size=(512, 512))


def test_a_network_without_a_step_is_refused_with_its_last_words() -> None:
    with pytest.raises(UnsupportedModelError, match="it said: Sizes of tensors must match: 320"):
        find_size_rule(runs_in_steps_of(80), min_size=(64, 64), max_size=(512, 512))


def test_a_network_of_one_size_is_refused_with_that_size_and_the_way_out() -> None:
    def run(height: int, width: int) -> tuple[int, int]:
        if (height, width) != (224, 224):
            raise RuntimeError(f"Input height ({height}) doesn't match model (224)")
        return height, width

    with pytest.raises(
        UnsupportedModelError, match=r"it takes 224x224 px; .*doesn't match"
    ) as caught:
        find_size_rule(run, min_size=(64, 64), max_size=(512, 512))

    assert "--size 224x224 --min-size 224x224 --max-size 224x224" in str(caught.value)
    assert "dynamic_img_size=True" in str(caught.value)
    assert "fully convolutional" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_only_size_is_taken_at_its_word_or_refused() -> None:
    assert find_only_size(runs_in_steps_of(96), (96, 192)) == SizeRule(1, (96, 192), True)

    with pytest.raises(UnsupportedModelError, match="the only size that is asked for, 97x96 px: S"):
        find_only_size(runs_in_steps_of(96), (97, 96))


def test_a_range_that_is_too_small_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="takes no size from 8x8 to 32x32"):
        find_size_rule(runs_in_steps_of(1, least=48), min_size=(8, 8), max_size=(32, 32))


def test_ranges_are_widened_to_the_multiple() -> None:
    asked = ShapeRange((1, 50, 50), (1, 100, 130), (4, 100, 200))

    fitted = fit_shapes(asked, SizeRule(32, (64, 64), full_resolution=True))

    assert fitted == ShapeRange((1, 64, 64), (1, 128, 160), (4, 128, 224), multiple_of=32)


def test_ranges_follow_a_patch_that_is_no_power_of_two() -> None:
    asked = ShapeRange((1, 64, 64), (1, 512, 512), (1, 1024, 1024))

    fitted = fit_shapes(asked, SizeRule(14, (70, 70), full_resolution=False))

    assert fitted == ShapeRange((1, 70, 70), (1, 518, 518), (1, 1036, 1036), multiple_of=14)
    assert fitted.padded_size(375, 500) == (378, 504)
