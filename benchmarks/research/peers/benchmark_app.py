"""Run OpenVINO's own benchmark_app on the network alone, its best case."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fcn_deploy.errors import BenchmarkError
from fcn_deploy.telemetry import silent_environment

__all__ = ["run_benchmark_app"]

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def run_benchmark_app(graph: Path, *, precision: str, threads: int, seconds: int) -> float:
    """Give the median latency in ms that it finds, on inputs that it makes up.

    Args:
        graph: ONNX of one fixed input size.
        seconds: how long it measures, 1 or more; it loads the graph besides.

    Raises:
        BenchmarkError: it failed; the message has its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("benchmark_app")),  # the wheel's own script
            *("-m", str(graph), "-d", "CPU", "-api", "sync"),
            # what its latency hint takes here; it refuses a hint along with -nthreads
            *("-hint", "none", "-nstreams", "1", "-nthreads", str(threads)),
            *("-infer_precision", _HINTS[precision], "-t", str(seconds)),
            *("-report_type", "no_counters", "-report_folder", folder, "-json_stats"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=silent_environment()
        )
        report = Path(folder) / "benchmark_report.json"
        if done.returncode or not report.is_file():
            raise BenchmarkError(f"benchmark_app failed: {_complaint(done.stdout + done.stderr)}")
        return float(json.loads(report.read_text())["execution_results"]["latency (ms)"])


def _complaint(said: str) -> str:
    """Pick what it calls an error, up to Python's traceback; else its last words."""
    _, marked, error = said.rpartition("[ ERROR ]")
    if marked:
        return " ".join(error.partition("Traceback")[0].split())
    return (said.strip().splitlines() or ["it said nothing"])[-1]
