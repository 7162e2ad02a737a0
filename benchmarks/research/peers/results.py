"""Write RESULTS.md section by section; a run replaces the sections that it measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcn_bench.environment import describe_environment
from fcn_bench.stats import Ratio
from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.machine import Machine, abilities_of, describe_machine
from research.peers.race import LEAST_AGREEMENT, ContenderResult, Race

__all__ = [
    "OTHER_LABELS",
    "TITLES",
    "describe_run",
    "number",
    "race_table",
    "ratio_text",
    "table",
    "write_section",
]

TITLES = {
    "machine": "The machine",
    "lraspp": "LR-ASPP MobileNetV3, 720x1280: frame to labels",
    "fcn": "FCN-ResNet50, 512x512: frame to labels",
    "head": "The head alone: scores to labels",
    "overhead": "What the runtime adds, and what is left against the CPU's peak",
    "pixels": "How cost grows: pixels",
    "classes": "How cost grows: classes",
    "batch": "How cost grows: batch",
}
"""Sections in the order in which they stand in the file."""

_HEADING = """# Results against peers

Written by `make peers` (`python -m benchmarks.research.peers`); do not edit. What the tables mean,
and what was tried, stands in [NOTES.md](NOTES.md).
"""


OTHER_LABELS = "other labels"
"""In place of a ratio, where the labels agree too little for the work to be the same."""


def write_section(file: Path, name: str, text: str) -> None:
    """Put a section into the file in place of its older self; the file appears when whole."""
    sections = _read(file)
    sections[name] = text.strip()
    parts = [_HEADING]
    for section, title in TITLES.items():
        if section in sections:
            parts.append(
                f"<!-- begin {section} -->\n## {title}\n\n{sections[section]}\n"
                f"<!-- end {section} -->\n"
            )
    write_whole(file, "\n".join(parts).encode())


def describe_run(*, threads: int, rules: str | None = None) -> str:
    """Describe the machine and the libraries, and what the machine lacks.

    Args:
        rules: how the rows came about; None means those of the peers.
    """
    environment = describe_environment(threads=threads, streams=1)
    machine = describe_machine()
    versions = ", ".join(
        f"{name} {environment['libraries'][name]}"
        for name in ("torch", "onnxruntime", "openvino", "opencv-python-headless", "numba")
        if name in environment["libraries"]
    )
    rows: list[Sequence[Any]] = [
        ("CPU", environment["cpu"]),
        ("cores that are used", environment["cores"]),
        ("instructions", ", ".join(environment["cpu_features"])),
        ("system", f"{environment['system']}, Python {environment['python']}"),
        ("libraries", versions),
        ("threads of every row", threads),
    ]
    return "\n".join([*table(("", ""), rows), "", _lacks(machine), rules or _rules()])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Give a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def race_table(race: Race, *, base: ContenderResult) -> list[str]:
    """Give the rows of a race, slowest first as they were listed, with ratios against `base`."""
    rows = []
    eager = race.results[0]
    for result in race.results:
        rows.append(
            (
                result.contender.name,
                result.contender.precision,
                number(result.median_ms),
                number(result.network_median_ms),
                ratio_text(race.ratio(eager, result)) if result.has_same_labels else OTHER_LABELS,
                ratio_text(race.ratio(result, base)) if result.has_same_labels else OTHER_LABELS,
                f"{result.agreement:.3%}",
            )
        )
    header = (
        "frame to labels",
        "precision",
        "ms",
        "of which its network call",
        "eager / it",
        f"it / {base.contender.name} {base.contender.precision}",
        "labels as eager fp32",
    )
    return [*table(header, rows), "", noise_text(race)]


def noise_text(*races: Race) -> str:
    """Say how races were run and how quiet the machine was."""
    shares = [race.foreign_cpu for race in races if race.foreign_cpu is not None]
    quiet = (
        f" Other programs took {statistics.median(shares):.0%} of the CPUs meanwhile (median)."
        if shares
        else ""
    )
    counts = sorted({race.rounds for race in races})
    rounds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    turns = "rows taking turns"
    if any(race.apart for race in races):
        turns += ", one after another where memory would not hold all of them"
    day = datetime.now(UTC).date().isoformat()
    return f"{day}, {rounds} rounds, {turns}.{quiet}"


def ratio_text(ratio: Ratio) -> str:
    return f"{number(ratio.value)} [{number(ratio.low)}, {number(ratio.high)}]"


def number(value: float) -> str:
    """Write three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _read(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    pattern = r"<!-- begin (\w+) -->\n## [^\n]*\n\n(.*?)\n<!-- end \1 -->"
    return dict(re.findall(pattern, file.read_text(encoding="utf-8"), re.DOTALL))


def _lacks(machine: Machine) -> str:
    missing = [feature for feature in machine.features if feature.present is False]
    if not missing:
        return "The CPU has all instructions that matter here."
    named = "; ".join(f"{feature.name} ({feature.purpose})" for feature in missing)
    text = f"The CPU lacks: {named}."
    if not abilities_of(machine.features).bf16:
        text += " There are no bf16 rows therefore: they appear where the CPU has it."
    return text


def _rules() -> str:
    return (
        "Every row is fed the same uint8 BGR frames, held-out scenes of "
        "`benchmarks/research/scenes`, and gives uint8 labels of the frame's size; the networks "
        "were trained on such scenes. Times are medians. Ratios are of medians, with 95 % "
        "bootstrap intervals. A row has no ratio if "
        f"fewer than {LEAST_AGREEMENT:.1%} of its labels are those of eager fp32 PyTorch. "
        "Each row has a process of its own, unless a section says otherwise."
    )
