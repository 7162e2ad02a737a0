"""Decide whether a measured row may be believed, and give each reason against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fcn_bench.stats import relative_spread, trend

__all__ = ["Evidence", "Verdict", "VerdictLimits", "decide_verdict"]


class Verdict(StrEnum):
    """Whether a row may be believed."""

    VALID = "VALID"
    SUSPECT = "SUSPECT"


@dataclass(frozen=True, slots=True)
class VerdictLimits:
    """Beyond these a row is SUSPECT.

    Attributes:
        min_samples: fewest measured calls.
        max_drift: largest significant change from first to last sample, as a share of the median.
        max_spread: largest (p90 - p10) / p50.
        max_foreign_cpu: largest share of the CPUs that other processes took while the row ran.
        min_fp32_agreement: smallest share of pixels with PyTorch's label, for fp32 rows.
    """

    min_samples: int = 20
    max_drift: float = 0.05
    max_spread: float = 0.25
    max_foreign_cpu: float = 0.10
    min_fp32_agreement: float = 0.99


@dataclass(frozen=True, slots=True)
class Evidence:
    """The measurements of one row that its verdict depends on.

    Attributes:
        durations_ms: measured calls, in the order in which they ran.
        warm: whether the warm-up ended steady; None where the caller fixed its length.
        foreign_cpu: share of the CPUs that other processes took meanwhile; None if unknown.
        output_faults: what is wrong with the labels, such as a constant output.
        overload: why the queue of a stream grew; None where it did not. Latencies then grow with
            the length of a turn, so that their drift and spread do not count.
        fp32_agreement: share of pixels with PyTorch's label, where this row computes in fp32.
    """

    durations_ms: Sequence[float]
    warm: bool | None = None
    foreign_cpu: float | None = None
    output_faults: tuple[str, ...] = ()
    fp32_agreement: float | None = None
    overload: str | None = None


def decide_verdict(
    evidence: Evidence, *, limits: VerdictLimits | None = None
) -> tuple[Verdict, tuple[str, ...]]:
    """Give the verdict on one row and every reason against it."""
    limits = limits or VerdictLimits()
    reasons = [*evidence.output_faults]
    count = len(evidence.durations_ms)
    if count < limits.min_samples:
        reasons.append(f"{count} samples; {limits.min_samples} are the least")
    if evidence.overload is not None:
        reasons.append(evidence.overload)
    elif count >= 3:
        reasons += _series_reasons(evidence.durations_ms, limits)
    if evidence.warm is False:
        reasons.append("the warm-up ended before the durations were steady")
    if evidence.foreign_cpu is not None and evidence.foreign_cpu > limits.max_foreign_cpu:
        reasons.append(
            f"other processes took {evidence.foreign_cpu:.0%} of the CPUs meanwhile; "
            f"the limit is {limits.max_foreign_cpu:.0%}"
        )
    if evidence.fp32_agreement is not None and evidence.fp32_agreement < limits.min_fp32_agreement:
        reasons.append(
            f"only {evidence.fp32_agreement:.2%} of the pixels have PyTorch's label; "
            f"fp32 must have {limits.min_fp32_agreement:.0%}"
        )
    return (Verdict.SUSPECT if reasons else Verdict.VALID), tuple(reasons)


def _series_reasons(durations_ms: Sequence[float], limits: VerdictLimits) -> list[str]:
    reasons = []
    drift = trend(durations_ms)
    if drift.significant and abs(drift.drift) > limits.max_drift:
        direction = "slower" if drift.drift > 0 else "faster"
        reasons.append(
            f"{abs(drift.drift):.0%} {direction} at the end than at the start; "
            f"the limit is {limits.max_drift:.0%}"
        )
    spread = relative_spread(durations_ms)
    if spread > limits.max_spread:
        reasons.append(
            f"spread (p90 - p10) / p50 is {spread:.0%}; the limit is {limits.max_spread:.0%}"
        )
    return reasons
