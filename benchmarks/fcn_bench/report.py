"""Hold what a benchmark found as rows, and write the JSON that other people's scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fcn_bench.stats import LatencySummary, Ratio
from fcn_bench.verdict import Verdict

__all__ = [
    "SCHEMA_VERSION",
    "BenchmarkReport",
    "Row",
    "RowFidelity",
    "RowKey",
    "Speedup",
    "StartTimes",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RowKey:
    """The fields that identify a row.

    Attributes:
        backend: ``"torch"`` for the baseline.
        mode: how PyTorch ran, or how many streams a backend had.
        scenario: ``"latency"`` (one call after the other), ``"throughput"`` (saturated) or
            ``"stream"`` (frames at a fixed rate).
        scope: ``"compute"``, ``"transfer"`` (of plans), ``"frame"`` or ``"stream"``.
        height, width: of the frames, in px.
    """

    backend: str
    precision: str
    mode: str
    scenario: str
    scope: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return (
            f"{self.backend} {self.precision} {self.mode}, {self.scenario}, {self.scope}, "
            f"{self.batch}x{self.height}x{self.width}"
        )


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster a row is than the baseline row named `against`."""

    ratio: Ratio
    against: str

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.ratio.value,
            "ci95": [self.ratio.low, self.ratio.high],
            "against": self.against,
        }


@dataclass(frozen=True, slots=True)
class RowFidelity:
    """How right the labels are; None where it was not measured.

    Attributes:
        label_agreement: share of pixels with PyTorch's fp32 label.
        near_tie_share: share of pixels that differ where PyTorch itself was nearly undecided.
        miou: mean IoU against the ground truth given, 0..1.
        miou_drop: PyTorch's mean IoU less this one, in percentage points.
        miou_vs_baseline: mean IoU with PyTorch's labels as the reference.
    """

    label_agreement: float | None = None
    near_tie_share: float | None = None
    miou: float | None = None
    miou_drop: float | None = None
    miou_vs_baseline: float | None = None


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Times that a user waits at the start, in ms; None where they were not measured.

    Attributes:
        open: loading the network, in a process that has imported its libraries or does so now.
        first_frame: the first call after that, in whatever scope was timed first.
    """

    open: float | None = None
    first_frame: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One measured configuration.

    Attributes:
        latency_ms: of one call with its whole batch.
        throughput_fps: frames a second; of all streams together where the scenario is throughput;
            written, where frames arrive at a fixed rate.
        speedup: against PyTorch eager; None without a baseline and for that row itself.
        speedup_best: against the fastest PyTorch row of the same kind.
        peak_rss_bytes: most memory of the row's process until its timing ended.
        start_ms: how long the process took to be ready.
        notes: reasons of the verdict first.
    """

    key: RowKey
    latency_ms: LatencySummary
    throughput_fps: float
    speedup: Speedup | None
    speedup_best: Speedup | None
    fidelity: RowFidelity
    peak_rss_bytes: int | None
    verdict: Verdict
    notes: tuple[str, ...] = ()
    start_ms: StartTimes = StartTimes()

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.key),
            "latency_ms": asdict(self.latency_ms),
            "throughput_fps": self.throughput_fps,
            "speedup": None if self.speedup is None else self.speedup.to_json(),
            "speedup_best": None if self.speedup_best is None else self.speedup_best.to_json(),
            "fidelity": asdict(self.fidelity),
            "peak_rss_bytes": self.peak_rss_bytes,
            "start_ms": asdict(self.start_ms),
            "verdict": str(self.verdict),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """A whole run.

    Attributes:
        environment: as `fcn_bench.environment.describe_environment` gives it.
        target: path, kind, and the digest that tells one network from another.
        baseline: the same of the PyTorch model; None where there was none.
        notes: what a reader must know of all rows.
        complete: False where the run was interrupted; rows are then those that have samples.
    """

    environment: Mapping[str, Any]
    target: Mapping[str, Any]
    baseline: Mapping[str, Any] | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Give the document that `--json` writes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "environment": dict(self.environment),
            "target": dict(self.target),
            "baseline": None if self.baseline is None else dict(self.baseline),
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
            "complete": self.complete,
        }
