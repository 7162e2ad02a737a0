"""Write a report as one HTML page that loads nothing: no script, no font, no picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fcn_bench.report import BenchmarkReport, Row
from fcn_bench.tables import COLUMNS, cells, groups, remarks, surroundings
from fcn_bench.verdict import Verdict

__all__ = ["html_text"]

_STYLE = """
:root { color-scheme: light dark; --ours: #2a78b8; --torch: #8a8a8a; --line: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th.right, td.right { text-align: right; }
tr.suspect td:last-child { font-weight: bold; }
.wide { overflow-x: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
svg .bar { fill: var(--ours); } svg .bar.torch { fill: var(--torch); }
svg .span { stroke: currentColor; stroke-width: 1.5; }
"""
_LABEL_PX, _BARS_PX, _VALUE_PX, _LINE_PX = 230, 520, 90, 24


def html_text(report: BenchmarkReport) -> str:
    """Give the tables of the report, each under a chart of its medians, as one page."""
    name = escape(str(report.target.get("name", "")))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Benchmark of {name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Benchmark of {name}</h1>",
        _bullets([line.removeprefix("- ") for line in surroundings(report)]),
    ]
    for title, rows in groups(report.rows):
        parts += [f"<h2>{escape(title)}</h2>", _chart(rows), _table(rows)]
    found = remarks(report)
    if found:
        parts += ["<h2>Notes</h2>", _bullets(found)]
    return "\n".join([*parts, "</body></html>", ""])


def _bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f'<th class="{side}">{escape(name)}</th>' for name, side in COLUMNS)
    body = []
    for row in rows:
        line = "".join(
            f'<td class="{side}">{escape(cell)}</td>'
            for cell, (_, side) in zip(cells(row), COLUMNS, strict=True)
        )
        suspect = ' class="suspect"' if row.verdict is Verdict.SUSPECT else ""
        body.append(f"<tr{suspect}>{line}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _chart(rows: Sequence[Row]) -> str:
    """Draw a bar to the median of each row, and a line from its fastest call to p95."""
    most = max(row.latency_ms.p95 for row in rows)
    width, height = _LABEL_PX + _BARS_PX + _VALUE_PX, _LINE_PX * len(rows)
    shapes = []
    for index, row in enumerate(rows):
        latency, top = row.latency_ms, index * _LINE_PX
        middle = top + _LINE_PX / 2
        low, median, high = (
            _LABEL_PX + _BARS_PX * value / most for value in (latency.min, latency.p50, latency.p95)
        )
        name = escape(f"{row.key.backend} {row.key.precision} {row.key.mode}")
        kind = "bar torch" if row.key.backend == "torch" else "bar"
        shapes += [
            f'<text x="{_LABEL_PX - 8}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>',
            f'<rect class="{kind}" x="{_LABEL_PX}" y="{top + 4}" width="{median - _LABEL_PX:.1f}" '
            f'height="{_LINE_PX - 8}"/>',
            f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" '
            f'y2="{middle:.1f}"/>',
            f'<text x="{max(median, high) + 8:.1f}" y="{middle + 4:.1f}">'
            f"{latency.p50:.2f} ms</text>",
        ]
    return (
        f'<svg role="img" aria-label="median latency of each row" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{"".join(shapes)}</svg>'
    )
