"""Which sizes a network takes is found by trying it."""

from __future__ import annotations

import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_export.trace.size_rule import STEPS, SizeRule, find_size_rule, fit_shapes


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

    assert rule == SizeRule(step, (64, 64), full_resolution=True)


def test_scores_smaller_than_the_input_are_noticed() -> None:
    rule = find_size_rule(runs_in_steps_of(1, scale=8), min_size=(64, 64), max_size=(512, 512))

    assert not rule.full_resolution


def test_the_smallest_size_that_works_is_found() -> None:
    # at 60x60 and above; sizes that are tried for the step are all larger
    rule = find_size_rule(runs_in_steps_of(4, least=60), min_size=(30, 40), max_size=(512, 512))

    assert rule.min_size == (68, 92)


def test_a_network_of_one_size_is_refused_with_its_own_words() -> None:
    with pytest.raises(UnsupportedModelError, match="Sizes of tensors must match: 65") as caught:
        find_size_rule(runs_in_steps_of(48), min_size=(64, 64), max_size=(512, 512))

    assert "fully convolutional" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_range_that_is_too_small_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="takes no size from 8x8 to 32x32"):
        find_size_rule(runs_in_steps_of(1, least=48), min_size=(8, 8), max_size=(32, 32))


def test_ranges_are_widened_to_the_multiple() -> None:
    asked = ShapeRange((1, 50, 50), (1, 100, 130), (4, 100, 200))

    fitted = fit_shapes(asked, SizeRule(32, (64, 64), full_resolution=True))

    assert fitted == ShapeRange((1, 64, 64), (1, 128, 160), (4, 128, 224), multiple_of=32)
