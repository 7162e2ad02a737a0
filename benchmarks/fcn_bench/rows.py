"""Make the report's rows of samples and checks: verdict, speed-ups, fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fcn_bench.agreement import Agreement
from fcn_bench.report import Row, RowFidelity, RowKey, Speedup, StartTimes
from fcn_bench.scenarios import MeasuredRow
from fcn_bench.stats import ratio_of_medians, summarise
from fcn_bench.verdict import Evidence, decide_verdict
from fcn_deploy.names import Array

__all__ = ["GroundTruth", "Outcome", "make_rows"]

_MANY_WEAK_MARGINS = 0.02
_KEEPS_UP = 0.95  # of the arrivals: over short turns the rate is uncertain by a few percent


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Mean IoU against labelled images, 0..1."""

    miou: float

    @classmethod
    def of(cls, confusion: Array) -> GroundTruth:
        """Give the figures of a confusion matrix, int64 [C, C]."""
        from fcn_export.check.fidelity import mean_iou

        return cls(mean_iou(confusion)[0])


@dataclass(frozen=True, slots=True)
class Outcome:
    """Checks of one process: load time, memory, labels; without its durations.

    Attributes:
        open_ms: time that loading the network took.
        eager_truth: PyTorch eager's mean IoU, which the rows' are compared with.
    """

    open_ms: float | None = None
    peak_rss_bytes: int | None = None
    agreement: Agreement = field(default_factory=Agreement)
    truth: GroundTruth | None = None
    eager_truth: GroundTruth | None = None


def make_rows(measured: Sequence[tuple[MeasuredRow, Outcome]]) -> list[Row]:
    """Judge every row and compare it with PyTorch's rows of its scenario and scope."""
    samples = [row for row, _ in measured]
    return [_make_row(row, outcome, samples) for row, outcome in measured]


def _make_row(row: MeasuredRow, outcome: Outcome, samples: Sequence[MeasuredRow]) -> Row:
    durations = [value for part in row.durations_ms for value in part]
    agreement = outcome.agreement
    foreign = row.series.foreign_cpu
    verdict, reasons = decide_verdict(
        Evidence(
            durations_ms=durations,
            warm=row.series.warm.steady,
            foreign_cpu=sum(foreign) / len(foreign) if foreign else None,
            output_faults=agreement.faults,
            fp32_agreement=agreement.label_agreement if row.key.precision == "fp32" else None,
            overload=_overload(row),
        )
    )
    eager, best = _baselines(row, samples)
    speedup = _speedup(row, eager)
    notes = [*reasons, *_notes(row, agreement)]
    if eager is not None and _overload(eager) is not None:
        notes.append("no speed-up: PyTorch eager cannot keep up, so its latency grows on")
    if speedup is not None and not speedup.ratio.distinguishable:
        notes.append("cannot tell apart from PyTorch eager: the interval holds 1")
    return Row(
        key=row.key,
        latency_ms=summarise(durations),
        throughput_fps=row.throughput_fps,
        speedup=speedup,
        speedup_best=_speedup(row, best),
        fidelity=_fidelity(outcome),
        start_ms=StartTimes(outcome.open_ms, row.series.warm.first_ms),
        peak_rss_bytes=outcome.peak_rss_bytes,
        verdict=verdict,
        notes=tuple(notes),
    )


def _baselines(row: MeasuredRow, samples: Sequence[MeasuredRow]) -> tuple[MeasuredRow | None, ...]:
    """Give PyTorch eager and the fastest PyTorch row of the same kind, where they are others."""
    peers = [other for other in samples if _same_kind(other.key, row.key)]
    eager = next((other for other in peers if other.key.mode == "eager"), None)
    able = [other for other in peers if _overload(other) is None]
    best = min(able, key=_median_cost, default=None)
    if row.key.backend == "torch":
        return (None if eager is None or eager.key == row.key else eager), None
    return eager, best


def _same_kind(torch: RowKey, key: RowKey) -> bool:
    if torch.backend != "torch":
        return False
    same = ("scenario", "scope", "batch", "height", "width")
    return all(getattr(torch, name) == getattr(key, name) for name in same)


def _median_cost(row: MeasuredRow) -> float:
    return float(np.median([value for part in row.cost_ms for value in part]))


def _speedup(row: MeasuredRow, against: MeasuredRow | None) -> Speedup | None:
    """Give the ratio; None where there is none, as a growing queue's median says nothing."""
    if against is None or _overload(row) is not None or _overload(against) is not None:
        return None
    return Speedup(ratio_of_medians(against.cost_ms, row.cost_ms), against.key.mode)


def _overload(row: MeasuredRow) -> str | None:
    rate_fps = row.rate_fps
    if rate_fps is None or (not row.unwritten and row.throughput_fps >= _KEEPS_UP * rate_fps):
        return None
    return (
        f"cannot keep up with {rate_fps:g} frames/s: {row.throughput_fps:.1f} are written, so the "
        "queue grows, and latency with it for as long as it runs"
    )


def _stream_notes(row: MeasuredRow, rate_fps: float) -> list[str]:
    latencies = [value for part in row.durations_ms for value in part]
    interval_ms = 1000 / rate_fps
    late = sum(value > interval_ms for value in latencies)
    notes = [
        f"of {len(latencies)} frames at {rate_fps:g} a second {late} were late (more than one "
        f"interval, {interval_ms:.1f} ms, after they were due), 0 dropped"
    ]
    if row.unwritten:
        notes.append(
            f"{row.unwritten} frames were not written when their turn ended; they count with "
            "their age then"
        )
    return notes


def _fidelity(outcome: Outcome) -> RowFidelity:
    agreement, truth, eager = outcome.agreement, outcome.truth, outcome.eager_truth
    return RowFidelity(
        label_agreement=agreement.label_agreement,
        near_tie_share=agreement.near_tie_share,
        miou=None if truth is None else truth.miou,
        miou_drop=None if truth is None or eager is None else 100 * (eager.miou - truth.miou),
        miou_vs_baseline=agreement.miou_vs_baseline,
    )


def _notes(row: MeasuredRow, agreement: Agreement) -> list[str]:
    notes = [] if row.rate_fps is None else _stream_notes(row, row.rate_fps)
    weak = agreement.weak_margin_share
    if row.key.precision != "fp32" and weak is not None and weak > _MANY_WEAK_MARGINS:
        notes.append(
            f"PyTorch itself is nearly undecided at {weak:.0%} of the pixels, as with untrained "
            "weights: label agreement says little of this precision"
        )
    if row.series.warm.steady is None:
        notes.append(f"warm-up of {row.series.warm.calls} calls, as given")
    return notes
