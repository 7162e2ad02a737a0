"""OpenVINO's own benchmark_app, started anew for each slice: the network alone, its best case."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fcn_bench.rounds import Work
from fcn_bench.timing import Slice, Timing, WarmUp
from fcn_deploy.errors import BenchmarkError

__all__ = ["BenchmarkApp"]

_SECONDS_AT_LEAST = 2  # it takes whole seconds, and the first inferences are slow
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class BenchmarkApp:
    """benchmark_app on one graph, as a runner that takes turns. A slice is its median latency."""

    def __init__(self, graph: Path, *, precision: str, threads: int) -> None:
        self._graph = graph
        self._precision = precision
        self._threads = threads

    def warm_up(self, work: Work, *, calls: int | None) -> WarmUp:
        """Do nothing: it warms up by itself in every run."""
        return WarmUp(0, None)

    def measure(self, work: Work, *, seconds: float, min_calls: int) -> Slice:
        """Run it once.

        Raises:
            BenchmarkError: it failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = [
                str(Path(sys.executable).with_name("benchmark_app")),  # the wheel's own script
                *("-m", str(self._graph), "-d", "CPU", "-api", "sync"),
                # what its latency hint takes here; it refuses a hint along with -nthreads
                *("-hint", "none", "-nstreams", "1"),
                *("-infer_precision", _HINTS[self._precision]),
                *("-nthreads", str(self._threads)),
                *("-t", str(max(_SECONDS_AT_LEAST, round(seconds)))),
                *("-report_type", "no_counters", "-report_folder", folder, "-json_stats"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            report = Path(folder) / "benchmark_report.json"
            if done.returncode or not report.is_file():
                said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
                raise BenchmarkError(f"benchmark_app failed, its last words: {said[-1]}")
            results = json.loads(report.read_text())["execution_results"]
        median_ms = float(results["latency (ms)"])
        return Slice((Timing(median_ms, median_ms),), float(results["throughput"]))
