"""Rows and reports made by hand, for tests that measure nothing."""

from __future__ import annotations

import numpy as np

from fcn_bench.report import BenchmarkReport, Row, RowFidelity, RowKey, Speedup, StartTimes
from fcn_bench.stats import Ratio, summarise
from fcn_bench.verdict import Verdict

ENVIRONMENT = {
    "cpu": "A CPU",
    "cores": 2,
    "cpu_features": ["AVX2", "BF16"],
    "libraries": {"torch": "2.14.1", "openvino": "2026.4.1"},
    "threads": {"per_row": 2, "throughput_streams": 2, "variables": {}},
}


def make_key(
    backend: str = "openvino",
    precision: str = "fp32",
    *,
    mode: str = "1 stream",
    scenario: str = "latency",
    scope: str = "frame",
    size: tuple[int, int] = (512, 512),
) -> RowKey:
    return RowKey(backend, precision, mode, scenario, scope, 1, *size)


def make_row(
    key: RowKey,
    *,
    median_ms: float = 10.0,
    speedup: float | None = 3.0,
    fidelity: RowFidelity | None = None,
    verdict: Verdict = Verdict.VALID,
    notes: tuple[str, ...] = (),
) -> Row:
    durations = np.linspace(0.9 * median_ms, 1.1 * median_ms, 21).tolist()
    ratio = None if speedup is None else Ratio(speedup, 0.9 * speedup, 1.1 * speedup)
    return Row(
        key=key,
        latency_ms=summarise(durations),
        throughput_fps=1000 / median_ms,
        speedup=None if ratio is None else Speedup(ratio, "eager"),
        speedup_best=None if ratio is None else Speedup(ratio, "channels_last"),
        fidelity=fidelity or RowFidelity(),
        peak_rss_bytes=123_000_000,
        verdict=verdict,
        notes=notes,
        start_ms=StartTimes(850.0, 60.0),
    )


def make_report(*rows: Row, sha256: str = "ab" * 32, cpu: str = "A CPU") -> BenchmarkReport:
    return BenchmarkReport(
        environment={**ENVIRONMENT, "cpu": cpu},
        target={"name": "model.fcn", "path": "/x/model.fcn", "kind": "artifact", "sha256": sha256},
        baseline={"name": "model.pt"},
        rows=rows,
        notes=("a note of the run",),
    )
