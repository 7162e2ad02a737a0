"""Time an artifact against PyTorch: rows that take turns, speed-ups with intervals, a verdict."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_bench.options import BenchmarkOptions
    from fcn_bench.report import BenchmarkReport
    from fcn_bench.rounds import Schedule
    from fcn_bench.run_benchmark import BenchmarkInterrupted, benchmark

__all__ = ["BenchmarkInterrupted", "BenchmarkOptions", "BenchmarkReport", "Schedule", "benchmark"]

_HOMES = {
    "BenchmarkInterrupted": "fcn_bench.run_benchmark",
    "BenchmarkOptions": "fcn_bench.options",
    "BenchmarkReport": "fcn_bench.report",
    "Schedule": "fcn_bench.rounds",
    "benchmark": "fcn_bench.run_benchmark",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fcn_bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
