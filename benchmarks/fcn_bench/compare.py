"""`--compare`: the rows of this run against those of an earlier report of the same kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fcn_bench.report import SCHEMA_VERSION, BenchmarkReport, Row, RowKey
from fcn_deploy.errors import BenchmarkError

__all__ = ["DEFAULT_MAX_REGRESSION", "Change", "Comparison", "compare", "load_report"]

DEFAULT_MAX_REGRESSION = 10.0
"""Percent that a row may be slower without `--max-regression`."""

_MAX_REPORT_BYTES = 64 << 20


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


def load_report(path: Path) -> dict[str, Any]:
    """Read a report of `--json`.

    Raises:
        BenchmarkError: it is missing, no JSON, of another schema version, or was interrupted.
    """
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            raise BenchmarkError(f"'{path}' is too large for a report.")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkError(
            f"cannot read the report '{path}': {error.strerror}.",
            hint="fcn-bench TARGET --json FILE writes one.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"'{path}' is no JSON: {error}.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise BenchmarkError(
            f"'{path}' has schema version {version}; this release reads {SCHEMA_VERSION}."
        )
    if not document.get("complete", True):
        raise BenchmarkError(f"'{path}' is of a run that was interrupted.")
    if not isinstance(document.get("rows"), list) or not document["rows"]:
        raise BenchmarkError(
            f"'{path}' has no rows.", hint="fcn-bench TARGET --json FILE writes a report."
        )
    return dict(document)


def compare(
    report: BenchmarkReport, old: Mapping[str, Any], *, max_regression_percent: float | None = None
) -> Comparison:
    """Compare a run with an earlier report.

    Args:
        old: as `load_report` gives it.
        max_regression_percent: None allows 10 %.

    Raises:
        BenchmarkError: CPU, cores, thread settings or the network differ, or no row is in both.
    """
    new = report.to_json()
    _refuse_other_surroundings(new, old)
    try:
        before = {_key(row): row for row in old["rows"]}
        now = {row.key: row for row in report.rows}
        changes = tuple(
            Change(
                key,
                100 * (_cost_ms(row) / _old_cost_ms(key, before[key]) - 1),
                "SUSPECT" in (str(row.verdict), before[key]["verdict"]),
            )
            for key, row in now.items()
            if key in before
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise BenchmarkError(f"a row of the earlier report lacks {error}.") from error
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
        notes=_differences(new, old),
    )


def _refuse_other_surroundings(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    rates = [_entry(document, "environment", "stream_rate_fps") for document in (old, new)]
    if None not in rates and rates[0] != rates[1]:
        raise BenchmarkError(
            f"the reports cannot be compared: frames arrived {rates[0]:g} times a second and now "
            f"{rates[1]:g} times.",
            hint=f"Give --rate {rates[0]:g}.",
        )
    for part, name, what in (
        ("environment", "cpu", "the CPU"),
        ("environment", "cores", "the number of cores"),
        ("environment", "threads", "the thread settings"),
        ("target", "sha256", "the network (its SHA-256)"),
    ):
        now, before = _entry(new, part, name), _entry(old, part, name)
        if now != before:
            raise BenchmarkError(
                f"the reports cannot be compared: {what} was {before!r} and is {now!r}.",
                hint="Make both reports on one machine, of one network.",
            )


def _differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[str, ...]:
    now = _entry(new, "environment", "libraries") or {}
    before = _entry(old, "environment", "libraries") or {}
    names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    return tuple(f"{name} was {before.get(name)} and is {now.get(name)}" for name in names)


def _entry(document: Mapping[str, Any], part: str, name: str) -> Any:
    inner = document.get(part)
    return inner.get(name) if isinstance(inner, Mapping) else None


def _key(row: Mapping[str, Any]) -> RowKey:
    return RowKey(*(row[field.name] for field in fields(RowKey)))


def _cost_ms(row: Row) -> float:
    if row.key.scenario == "throughput":
        return 1000 / row.throughput_fps
    return row.latency_ms.p50


def _old_cost_ms(key: RowKey, row: Mapping[str, Any]) -> float:
    if key.scenario == "throughput":
        return 1000 / float(row["throughput_fps"])
    return float(row["latency_ms"]["p50"])
