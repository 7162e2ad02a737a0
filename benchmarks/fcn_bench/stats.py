"""Summarise series of durations: percentiles, spread, trend, and the ratio of two series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.names import Array

__all__ = [
    "LatencySummary",
    "Ratio",
    "Trend",
    "ratio_of_medians",
    "relative_spread",
    "summarise",
    "trend",
    "weighted_medians",
]

_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100  # 100 resamples of 20 000 samples need 16 MB
_TREND_POINTS = 200  # Theil-Sen compares every pair: 200 points make 19 900 slopes
_ROUNDS_FOR_CLUSTERS = 6  # fewer rounds give too few distinct draws for an interval


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Durations of one row, in milliseconds.

    Attributes:
        p50, p90, p95, p99: percentiles, linearly interpolated between samples.
        mean, std: std is of the sample (n - 1 in the denominator); 0 for one sample.
        n: number of measured calls.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    min: float
    max: float
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times `other` is slower, as a ratio of medians, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def distinguishable(self) -> bool:
        """Say whether the interval leaves out 1, that is, whether the two differ."""
        return not self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class Trend:
    """How much a series drifts from its first to its last sample.

    Attributes:
        drift: change over the whole series, as a share of the median; 0.1 is 10 % slower at
            the end than at the start.
        z: Mann-Kendall statistic; beyond +-2.58 chance alone has a probability below 1 %.
    """

    drift: float
    z: float

    @property
    def significant(self) -> bool:
        return abs(self.z) > 2.58


def summarise(durations_ms: Sequence[float]) -> LatencySummary:
    """Summarise durations.

    Raises:
        ValueError: the series is empty, or holds NaN, infinity, zero or a negative number.
    """
    values = _checked(durations_ms)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    return LatencySummary(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min=float(values.min()),
        max=float(values.max()),
        n=int(values.size),
    )


def relative_spread(durations_ms: Sequence[float]) -> float:
    """Give (p90 - p10) / p50: the width of the middle 80 % of a series, against its median."""
    p10, p50, p90 = np.percentile(_checked(durations_ms), (10, 50, 90))
    return float((p90 - p10) / p50)


def trend(durations_ms: Sequence[float]) -> Trend:
    """Fit a Theil-Sen line over the order of samples and test it by Mann-Kendall.

    Long series are first cut to 200 points, each the median of its block, in order.
    """
    values = _checked(durations_ms)
    if values.size < 3:
        return Trend(drift=0.0, z=0.0)
    if values.size > _TREND_POINTS:
        blocks = np.array_split(values, _TREND_POINTS)
        values = np.array([np.median(block) for block in blocks])
    first, second = np.triu_indices(values.size, k=1)
    rise = values[second] - values[first]
    slope = float(np.median(rise / (second - first)))
    count = values.size
    score = float(np.sign(rise).sum())
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    z = (score - math.copysign(1.0, score)) / deviation if score else 0.0
    return Trend(drift=slope * (count - 1) / float(np.median(values)), z=z)


def ratio_of_medians(
    other: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], *, seed: int = 0
) -> Ratio:
    """Compare two series measured in the same rounds: median of `other` / median of `ours`.

    The interval is a percentile bootstrap of 2000 draws. With six rounds or more, whole rounds
    are drawn, the same ones for both sides: samples of one round share the machine's state, so
    single samples would give an interval that is too narrow. With fewer rounds single samples
    are drawn.

    Args:
        other, ours: durations by round; both have the same number of rounds.
        seed: of the draws, so that a report can be reproduced from its samples.

    Raises:
        ValueError: a side is empty, or the two differ in their number of rounds.
    """
    if len(other) != len(ours):
        raise ValueError(f"{len(other)} rounds against {len(ours)}; both sides need the same")
    pooled = [_checked([value for part in side for value in part]) for side in (other, ours)]
    generator = np.random.default_rng(seed)
    rounds = len(ours)
    medians = []
    if rounds >= _ROUNDS_FOR_CLUSTERS:
        draws = generator.multinomial(rounds, np.full(rounds, 1 / rounds), size=_RESAMPLES)
        for side, values in zip((other, ours), pooled, strict=True):
            owner = np.repeat(np.arange(rounds), [len(part) for part in side])
            medians.append(weighted_medians(values, draws, owner))
    else:
        for values in pooled:
            size = values.size
            draws = generator.multinomial(size, np.full(size, 1 / size), size=_RESAMPLES)
            medians.append(weighted_medians(values, draws, np.arange(size)))
    ratios = medians[0] / medians[1]
    low, high = np.nanpercentile(ratios, (2.5, 97.5))
    return Ratio(float(np.median(pooled[0]) / np.median(pooled[1])), float(low), float(high))


def weighted_medians(values: Array, draws: Array, owner: Array) -> Array:
    """Give the median of each draw, where sample i counts ``draws[:, owner[i]]`` times.

    Args:
        values: float64 [samples].
        draws: int64 [draws, rounds], how often each round was drawn.
        owner: int64 [samples], the round that each sample is of.

    Returns:
        float64 [draws]; NaN where the drawn rounds hold no sample.
    """
    order = np.argsort(values, kind="stable")
    ordered, owner = values[order], owner[order]
    medians = np.empty(len(draws))
    for start in range(0, len(draws), _RESAMPLES_AT_ONCE):
        counts = np.cumsum(draws[start : start + _RESAMPLES_AT_ONCE][:, owner], axis=1)
        totals = counts[:, -1:]  # [draws, 1]; zero only where the drawn rounds hold no sample
        lower = ordered[np.argmax(counts * 2 >= totals, axis=1)]
        upper = ordered[np.argmax(counts * 2 > totals, axis=1)]
        part = (lower + upper) / 2
        medians[start : start + len(part)] = np.where(totals[:, 0] > 0, part, np.nan)
    return medians


def _checked(durations_ms: Sequence[float]) -> Array:
    values = np.asarray(durations_ms, dtype=np.float64)
    if values.size == 0:
        raise ValueError("the series holds no sample")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("the series holds NaN, infinity, zero or a negative duration")
    return values
