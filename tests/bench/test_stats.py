"""Percentiles, spread, trend and the ratio of medians, on series whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from fcn_bench.stats import ratio_of_medians, relative_spread, summarise, trend


def test_summary_has_the_percentiles_of_a_known_series() -> None:
    summary = summarise([float(value) for value in range(1, 102)])

    assert (summary.p50, summary.p90, summary.p95, summary.p99) == (51, 91, 96, 100)
    assert (summary.min, summary.max, summary.mean, summary.n) == (1, 101, 51, 101)
    assert summary.std == pytest.approx(np.std(np.arange(1, 102), ddof=1))


def test_summary_of_one_sample_has_no_deviation() -> None:
    summary = summarise([3.0])

    assert (summary.p50, summary.p99, summary.std, summary.n) == (3.0, 3.0, 0.0, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_durations_that_cannot_be_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN, infinity, zero or a negative duration"):
        summarise([1.0, bad])


def test_empty_series_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no sample"):
        summarise([])


def test_spread_is_the_width_of_the_middle_over_the_median() -> None:
    assert relative_spread([10.0] * 50) == 0.0
    assert relative_spread([float(v) for v in range(0 + 1, 102)]) == pytest.approx(80 / 51)


def test_trend_of_a_straight_line_is_its_rise() -> None:
    line = [10.0 + 0.01 * index for index in range(101)]  # rises by 1.0; median 10.5

    found = trend(line)

    assert found.drift == pytest.approx(1.0 / 10.5, rel=1e-6)
    assert found.significant


def test_trend_of_noise_is_not_significant(rng: np.random.Generator) -> None:
    found = [trend(rng.normal(10, 0.5, 60).tolist()).significant for _ in range(200)]

    # 1 % by construction of the test; 5 % leaves room for 200 draws
    assert sum(found) <= 10


def test_trend_of_a_long_series_is_found_in_blocks(rng: np.random.Generator) -> None:
    series = rng.normal(10, 0.5, 20_000) + np.linspace(0, 1, 20_000)

    found = trend(series.tolist())

    assert found.drift == pytest.approx(0.095, abs=0.02)
    assert found.significant


def test_ratio_of_medians_finds_a_known_factor(rng: np.random.Generator) -> None:
    slow = [rng.normal(30, 1, 20).tolist() for _ in range(10)]
    fast = [rng.normal(10, 1, 40).tolist() for _ in range(10)]

    ratio = ratio_of_medians(slow, fast)

    assert ratio.value == pytest.approx(3.0, rel=0.02)
    assert ratio.low < 3.0 < ratio.high
    assert ratio.distinguishable
    assert ratio.high - ratio.low < 0.3


def test_interval_covers_the_truth_about_95_times_in_100(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(100):
        # a machine that is slower in some rounds than in others, for both sides alike
        load = rng.normal(1, 0.05, 10)
        slow = [(20 * part * rng.normal(1, 0.02, 8)).tolist() for part in load]
        fast = [(10 * part * rng.normal(1, 0.02, 8)).tolist() for part in load]
        ratio = ratio_of_medians(slow, fast, seed=seed)
        covered += ratio.low <= 2.0 <= ratio.high

    # ten rounds are few, so that a percentile bootstrap covers a little less than it says
    assert 85 <= covered <= 100


def test_equal_series_cannot_be_told_apart(rng: np.random.Generator) -> None:
    sides = [[rng.normal(10, 1, 10).tolist() for _ in range(10)] for _ in range(2)]

    assert not ratio_of_medians(*sides).distinguishable


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_ratio_is_the_same_for_the_same_samples(rounds: int, rng: np.random.Generator) -> None:
    slow = [rng.normal(30, 3, 7).tolist() for _ in range(rounds)]
    fast = [rng.normal(10, 1, 5).tolist() for _ in range(rounds)]

    first, second = ratio_of_medians(slow, fast), ratio_of_medians(slow, fast)

    assert first == second
    assert first.low <= first.value <= first.high


def test_few_rounds_draw_samples_and_still_give_an_interval(rng: np.random.Generator) -> None:
    ratio = ratio_of_medians([rng.normal(20, 2, 30).tolist()], [rng.normal(10, 1, 30).tolist()])

    assert ratio.low < ratio.value < ratio.high


def test_sides_with_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1"):
        ratio_of_medians([[1.0], [1.0]], [[1.0]])


def test_weighted_medians_are_those_of_the_drawn_samples(rng: np.random.Generator) -> None:
    from fcn_bench.stats import weighted_medians

    values = rng.normal(10, 2, 60)
    owner = np.repeat(np.arange(6), 10)
    draws = rng.multinomial(6, np.full(6, 1 / 6), size=50)

    found = weighted_medians(values, draws, owner)

    expected = [np.median(np.repeat(values, counts[owner])) for counts in draws]
    np.testing.assert_allclose(found, expected)
