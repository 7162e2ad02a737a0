"""Show a report as a table on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcn_bench.report import BenchmarkReport, Row, Speedup
from fcn_bench.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "COLUMNS",
    "cells",
    "csv_text",
    "groups",
    "markdown_text",
    "remarks",
    "surroundings",
    "terminal_table",
]

_SCOPES = {
    "compute": "the network alone",
    "transfer": "the network, with the copies to the GPU and from it",
    "frame": "frame in, labels out",
    "stream": "from a frame's arrival to its written labels",
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
COLUMNS = (
    ("backend", "left"),
    ("precision", "left"),
    ("mode", "left"),
    ("p50 ms", "right"),
    ("p95 ms", "right"),
    ("fps", "right"),
    ("speed-up vs eager", "right"),
    ("vs best torch", "right"),
    ("labels = torch", "right"),
    ("mIoU", "right"),
    ("MB", "right"),
    ("n", "right"),
    ("verdict", "left"),
)


def terminal_table(report: BenchmarkReport) -> RenderableType:
    """Give one table for each scenario, scope, batch and size, with what must be known below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for title, rows in groups(report.rows):
        table = Table(title=title, title_justify="left", title_style="bold")
        for name, justify in COLUMNS:
            table.add_column(name, justify="right" if justify == "right" else "left")
        for row in rows:
            style = "yellow" if row.verdict is Verdict.SUSPECT else None
            table.add_row(*cells(row), style=style)
        parts.append(table)
    parts += [Text(line) for line in (*_starts(report), *remarks(report))]
    return Group(*parts)


def markdown_text(report: BenchmarkReport) -> str:
    """Give the same tables as Markdown, with the surroundings of the run."""
    lines = [f"# Benchmark of {report.target.get('name', '')}", "", *surroundings(report), ""]
    for title, rows in groups(report.rows):
        lines += [f"## {title}", ""]
        lines.append("| " + " | ".join(name for name, _ in COLUMNS) + " |")
        lines.append("|" + "|".join("--:" if j == "right" else "---" for _, j in COLUMNS) + "|")
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        lines.append("")
    found = remarks(report)
    if found:
        lines += ["## Notes", "", *(f"- {remark}" for remark in found), ""]
    return "\n".join(lines)


def csv_text(report: BenchmarkReport) -> str:
    """Give one line a row with the JSON's values; nested keys are joined by a dot."""
    flat = [_flatten(_same_keys(row.to_json())) for row in report.rows]
    names = list(dict.fromkeys(name for entry in flat for name in entry))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Give the rows of each scenario, scope, batch and size under the title that says them."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        key = row.key
        title = f"{key.scenario}, {key.scope} ({_SCOPES[key.scope]}), {key.height}x{key.width}"
        if key.batch > 1:
            title += f", batch {key.batch}"
        found.setdefault(title, []).append(row)
    return list(found.items())


def cells(row: Row) -> list[str]:
    """Give a row's cells, one for each of `COLUMNS`."""
    latency, fidelity = row.latency_ms, row.fidelity
    return [
        row.key.backend,
        row.key.precision,
        row.key.mode,
        f"{latency.p50:.2f}",
        f"{latency.p95:.2f}",
        f"{row.throughput_fps:.1f}",
        _speedup_cell(row.speedup),
        "" if row.speedup_best is None else f"{row.speedup_best.ratio.value:.2f}x",
        "" if fidelity.label_agreement is None else f"{fidelity.label_agreement:.3%}",
        _miou_cell(fidelity.miou, fidelity.miou_drop),
        "" if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 1e6:.0f}",
        str(latency.n),
        str(row.verdict),
    ]


def _speedup_cell(speedup: Speedup | None) -> str:
    if speedup is None:
        return ""
    ratio = speedup.ratio
    cell = f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    return cell if ratio.distinguishable else f"{cell} cannot tell apart"


def _miou_cell(miou: float | None, drop: float | None) -> str:
    if miou is None:
        return ""
    return f"{miou:.4f}" if drop is None else f"{miou:.4f} ({-drop:+.2f} pt)"


def remarks(report: BenchmarkReport) -> list[str]:
    """Give the notes of the run, and those of rows; notes that differ in numbers alone, once."""
    owners: dict[str, list[tuple[Row, str]]] = {}
    for row in report.rows:
        for note in row.notes:
            owners.setdefault(_NUMBER.sub("#", note), []).append((row, note))
    said = list(report.notes)
    for found in owners.values():
        row, note = found[0]
        if len(found) == 1:
            said.append(f"{row.key}: {note}")
        elif len({note for _, note in found}) == 1:
            said.append(f"{len(found)} rows: {note}")
        else:
            said.append(f"{len(found)} rows, such as {row.key}: {note}")
    return said


def surroundings(report: BenchmarkReport) -> list[str]:
    """Say, as a Markdown list, on what and with what the report was made."""
    environment = report.environment
    libraries: Mapping[str, str] = environment.get("libraries", {})
    named = ", ".join(
        f"{name} {libraries[name]}"
        for name in ("torch", "openvino", "onnxruntime")
        if name in libraries
    )
    features = ", ".join(environment.get("cpu_features", ()))
    threads: Mapping[str, Any] = environment.get("threads", {})
    return [
        f"- CPU: {environment.get('cpu')}, {environment.get('cores')} cores ({features})",
        f"- libraries: {named}",
        f"- threads a row: {threads.get('per_row')}; "
        f"streams of throughput rows: {threads.get('throughput_streams')}",
        f"- baseline: {'none' if report.baseline is None else report.baseline.get('name')}",
        *(f"- {line}" for line in _starts(report)),
    ]


def _starts(report: BenchmarkReport) -> list[str]:
    """Say how long each process took to open its network, and then for its first frame."""
    parts: dict[str, str] = {}
    for row in report.rows:
        key, start = row.key, row.start_ms
        if start.open is not None and start.first_frame is not None:
            name = f"{key.backend} {key.precision} {key.mode}"
            times = f"{start.open / 1000:.2f} + {start.first_frame / 1000:.2f} s"
            parts.setdefault(name, f"{name} {times}")
    return [f"to open, and for the first frame: {'; '.join(parts.values())}"] if parts else []


def _same_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a speed-up that was not measured its keys: columns must not depend on the baseline."""
    none: dict[str, Any] = {"value": None, "ci95": [], "against": None}
    return {**row, **{name: row[name] or none for name in ("speedup", "speedup_best")}}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat.update(_flatten(entry, f"{prefix}{name}."))
        elif isinstance(entry, list):
            flat[prefix + name] = "; ".join(str(part) for part in entry)
        else:
            flat[prefix + name] = entry
    return flat
