"""Compare the rows of this run with those of an earlier report, for `--compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from fcn_bench.report import SCHEMA_VERSION, BenchmarkReport, Row, RowKey
from fcn_deploy.artifact.strict_json import read_strict
from fcn_deploy.errors import BenchmarkError, ManifestError

__all__ = [
    "DEFAULT_MAX_REGRESSION",
    "Change",
    "Comparison",
    "EarlierReport",
    "compare",
    "load_report",
]

DEFAULT_MAX_REGRESSION = 10.0
"""Percent that a row may be slower without `--max-regression`."""

_MAX_REPORT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _EarlierLatency:
    p50: Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, slots=True)
class _EarlierRow(RowKey):
    latency_ms: _EarlierLatency
    throughput_fps: Annotated[float, Meta(ge=0)]  # 0: no frame of a stream was written
    verdict: str

    @property
    def key(self) -> RowKey:
        return RowKey(*(getattr(self, field.name) for field in fields(RowKey)))


@dataclass(frozen=True, slots=True)
class EarlierReport:
    """The fields of a `--json` report that a comparison reads."""

    rows: tuple[_EarlierRow, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class _Versioned:
    schema_version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One row, then and now.

    Attributes:
        percent: how much slower it is now; negative is faster. Of the median call, or of the time
            a frame takes where the scenario is throughput.
        doubtful: whether either of the two is SUSPECT.
    """

    key: RowKey
    percent: float
    doubtful: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows that both reports have.

    Attributes:
        only_old, only_new: rows that one of them lacks.
        notes: differences of the surroundings that do not forbid the comparison.
    """

    changes: tuple[Change, ...]
    only_old: tuple[RowKey, ...]
    only_new: tuple[RowKey, ...]
    max_regression_percent: float
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Rows that are slower by more than is allowed; PyTorch's own do not count."""
        return tuple(
            change
            for change in self.changes
            if change.percent > self.max_regression_percent and change.key.backend != "torch"
        )

    @property
    def held(self) -> bool:
        """Say whether the gate is passed: nothing slower than allowed, and no row gone."""
        return not self.regressions and not any(k.backend != "torch" for k in self.only_old)

    def lines(self) -> list[str]:
        """Give the comparison for reading."""
        lines = [f"compare: {note}" for note in self.notes]
        slower = self.regressions
        for change in self.changes:
            word = "slower" if change.percent > 0 else "faster"
            line = f"compare: {change.key}: {abs(change.percent):.1f} % {word}"
            if change in slower:
                line += f", FAILED: {self.max_regression_percent:g} % are allowed"
            lines.append(line + (" (one of the two is SUSPECT)" if change.doubtful else ""))
        lines += [f"compare: {key}: only in the earlier report" for key in self.only_old]
        lines += [f"compare: {key}: only in this run" for key in self.only_new]
        return lines


def load_report(path: Path) -> EarlierReport:
    """Read a report of `--json`.

    Raises:
        BenchmarkError: it is missing, malformed, of another schema version, or was interrupted.
    """
    hint = "fcn-bench TARGET --json FILE writes one."
    where, limit = f"the report '{path}'", _MAX_REPORT_BYTES
    try:
        content = path.read_bytes()
        version = read_strict(content, _Versioned, where=where, max_bytes=limit).schema_version
        if version != SCHEMA_VERSION:
            raise BenchmarkError(
                f"{where} has schema version {version}; this release reads {SCHEMA_VERSION}."
            )
        report = read_strict(content, EarlierReport, where=where, max_bytes=limit)
    except OSError as error:
        raise BenchmarkError(f"cannot read {where}: {error.strerror}.", hint=hint) from error
    except ManifestError as error:
        raise BenchmarkError(error.message, hint=hint) from error
    if not report.complete:
        raise BenchmarkError(f"{where} is of a run that was interrupted.", hint=hint)
    if not report.rows:
        raise BenchmarkError(f"{where} has no rows.", hint=hint)
    return report


def compare(
    report: BenchmarkReport, old: EarlierReport, *, max_regression_percent: float | None = None
) -> Comparison:
    """Compare a run with an earlier report.

    Args:
        old: as `load_report` gives it.
        max_regression_percent: None allows 10 %.

    Raises:
        BenchmarkError: CPU, cores, thread settings or the network differ, or no row is in both.
    """
    _refuse_other_surroundings(report, old)
    before = {row.key: row for row in old.rows}
    now = {row.key: row for row in report.rows}
    changes = tuple(
        Change(
            key,
            100 * (_cost_ms(row) / _cost_ms(before[key]) - 1),
            "SUSPECT" in (str(row.verdict), before[key].verdict),
        )
        for key, row in now.items()
        if key in before
    )
    if not changes:
        raise BenchmarkError(
            "the two reports have no row in common: backend, precision, mode, scenario, scope, "
            "batch and size must be the same.",
            hint="Run with the options of the earlier report.",
        )
    allowed = DEFAULT_MAX_REGRESSION if max_regression_percent is None else max_regression_percent
    return Comparison(
        changes=changes,
        only_old=tuple(key for key in before if key not in now),
        only_new=tuple(key for key in now if key not in before),
        max_regression_percent=allowed,
        notes=_differences(report, old),
    )


def _refuse_other_surroundings(new: BenchmarkReport, old: EarlierReport) -> None:
    rates = [report.environment.get("stream_rate_fps") for report in (old, new)]
    if None not in rates and rates[0] != rates[1]:
        raise BenchmarkError(
            f"the reports cannot be compared: frames arrived {rates[0]:g} times a second and now "
            f"{rates[1]:g} times.",
            hint=f"Give --rate {rates[0]:g}.",
        )
    for what, before, now in (
        ("the CPU", old.environment.get("cpu"), new.environment.get("cpu")),
        ("the number of cores", old.environment.get("cores"), new.environment.get("cores")),
        ("the thread settings", old.environment.get("threads"), new.environment.get("threads")),
        ("the network (its SHA-256)", old.target.get("sha256"), new.target.get("sha256")),
    ):
        if now != before:
            raise BenchmarkError(
                f"the reports cannot be compared: {what} was {before!r} and is {now!r}.",
                hint="Make both reports on one machine, of one network.",
            )


def _differences(new: BenchmarkReport, old: EarlierReport) -> tuple[str, ...]:
    now = new.environment.get("libraries") or {}
    before = old.environment.get("libraries") or {}
    names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    return tuple(f"{name} was {before.get(name)} and is {now.get(name)}" for name in names)


def _cost_ms(row: Row | _EarlierRow) -> float:
    if row.key.scenario == "throughput":
        return 1000 / row.throughput_fps if row.throughput_fps else math.inf
    return row.latency_ms.p50
