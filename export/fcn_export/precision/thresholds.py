"""Choose the threshold at which a tensor is clipped, from a histogram of its absolute values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from fcn_deploy.names import Array

__all__ = ["BINS", "METHODS", "PERCENTILE", "Method", "thresholds"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
"""How a threshold is found."""

METHODS: tuple[Method, ...] = get_args(Method)

BINS = 2048
"""Bins of a histogram from 0 to the largest value: 16 for each int8 step, as in TensorRT."""

PERCENTILE = 99.99

_LEVELS = 127
_ENTROPY_LEVELS = 128
_ENTROPY_STEP = 8  # bins from one candidate to the next
_MSE_CANDIDATES = 160


def thresholds(counts: Array, largest: float) -> dict[Method, float]:
    """Find the threshold of every method.

    Args:
        counts: int64 [BINS], how many absolute values lie in each of equal bins, 0 to `largest`.
        largest: the largest absolute value, above 0.

    Returns:
        One value a method, above 0 and at most `largest`.
    """
    edges = np.linspace(0.0, largest, len(counts) + 1)
    wide = counts.astype(np.float64)
    return {method: float(find(wide, edges)) for method, find in _FINDERS.items()}


def _minmax(counts: Array, edges: Array) -> float:
    return float(edges[-1])


def _percentile(counts: Array, edges: Array) -> float:
    shares = np.cumsum(counts) / counts.sum()
    return float(edges[1 + int(np.searchsorted(shares, PERCENTILE / 100.0))])


def _entropy(counts: Array, edges: Array) -> float:
    """Least Kullback-Leibler divergence of the clipped from the quantised distribution.

    The bin at 0 is left out: ReLU puts half of all values there, and 0 is exact in any case.
    """
    values = counts.copy()
    values[0] = 0.0
    if not values.any():
        return float(edges[-1])
    best, best_divergence = len(values), np.inf
    for kept in range(_ENTROPY_LEVELS, len(values) + 1, _ENTROPY_STEP):
        divergence = _divergence(values, kept)
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return float(edges[best])


def _divergence(counts: Array, kept: int) -> float:
    clipped = counts[:kept].copy()
    clipped[-1] += counts[kept:].sum()
    inside = counts[:kept]
    starts = np.arange(_ENTROPY_LEVELS) * kept // _ENTROPY_LEVELS
    occupied = inside > 0
    sums = np.add.reduceat(inside, starts)
    holders = np.add.reduceat(occupied.astype(np.float64), starts)
    means = np.divide(sums, holders, out=np.zeros_like(sums), where=holders > 0)
    spread = np.repeat(means, np.diff(np.append(starts, kept))) * occupied
    if not spread.any():
        return float("inf")
    reference, quantized = clipped / clipped.sum(), spread / spread.sum()
    both = (reference > 0) & (quantized > 0)
    if not both[-1] and reference[-1] > 0:  # mass was clipped into an empty bin
        quantized = np.maximum(quantized, 1e-9)
        both = reference > 0
    return float(np.sum(reference[both] * np.log(reference[both] / quantized[both])))


def _mse(counts: Array, edges: Array) -> float:
    """Least squared error of rounding and clipping."""
    centres = (edges[:-1] + edges[1:]) / 2  # [BINS]
    largest = float(edges[-1])
    best, least = largest, np.inf
    # geometric: a tensor with outliers may be best clipped at a hundredth of its largest value
    for threshold in largest * np.geomspace(1.0, 1e-3, _MSE_CANDIDATES):
        step = threshold / _LEVELS
        errors = centres - np.minimum(np.rint(centres / step), _LEVELS) * step
        # inside a bin as wide as a step, values are spread: their rounding averages step^2 / 12
        width = min(1.0, float(edges[1]) / step) ** 2 * step**2 / 12
        error = float((counts * (errors**2 + width)).sum())
        if error < least:
            best, least = float(threshold), error
    return best


_FINDERS: Mapping[Method, Callable[[Array, Array], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
