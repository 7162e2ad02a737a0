"""fcn-bench on plans: its own processes, real cuda.bindings, a fake driver, simulated TensorRT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fcn_deploy.names import Precision
from tests.deploy.backends.tensorrt.fake_driver import build_fake_libcuda
from tests.deploy.backends.tensorrt.simulated_tensorrt import make_plan
from tests.deploy.backends.tensorrt.test_backend import write_artifact
from tests.deploy.backends.tensorrt.worlds import GRAPH, LARGE, SMALL

ROOT = Path(__file__).resolve().parents[2]

SCOPES = {
    "latency": ("compute", "transfer", "frame"),
    "throughput": (
        "transfer",
        "frame",
    ),  # calls that saturate copy: no rate is of the network alone
    "stream": ("stream",),
}

TENSORRT = '''
"""Stands for NVIDIA's package: the simulation, over whatever libcuda.so.1 is loaded."""
import sys

from tests.deploy.backends.tensorrt.fake_driver import CDriver
from tests.deploy.backends.tensorrt.simulated_tensorrt import simulated_module

sys.modules[__name__] = simulated_module(__name__, CDriver())
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(TENSORRT)
    path = [str(folder), *(str(ROOT / part) for part in ("", "export", "benchmarks"))]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(build_fake_libcuda(folder)),
        "PYTHONPATH": os.pathsep.join(path),
    }


def bench(
    target: Path, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "fcn_bench.cli", target, "--size", "24x32", "--rounds", "2"),
            *("--min-duration", "0.1", "--warmup", "2", "--json", target.parent / "report.json"),
            *options,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["rows"]
    return rows


def test_plans_have_rows_like_any_backend(environment: dict[str, str], tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32, Precision.INT8)})

    done = bench(
        path, environment, "--backend", "tensorrt", "--scenario", "latency,throughput,stream"
    )

    assert done.returncode == 0, done.stderr
    found = {(row["precision"], row["scenario"], row["scope"]) for row in rows_of(tmp_path)}
    assert found == {
        (precision, scenario, scope)
        for precision in ("fp32", "int8")
        for scenario, scopes in SCOPES.items()
        for scope in scopes
    }


def test_the_gpus_own_clock_times_a_plan(environment: dict[str, str], tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})

    done = bench(path, environment, "--backend", "tensorrt", "--scenario", "latency")

    assert done.returncode == 0, done.stderr
    p50 = {row["scope"]: row["latency_ms"]["p50"] for row in rows_of(tmp_path)}
    # the fake driver's clock goes its own way: it stands beside the wall's, which times the frame
    # the copies before and after a run take as long as the run, each with its event
    assert (p50["compute"], p50["transfer"]) == (2.0, 6.0)
    assert "with the copies to the GPU and from it" in done.stdout


def test_a_bare_plan_needs_trust(environment: dict[str, str], tmp_path: Path) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(make_plan(GRAPH, [SMALL, LARGE]))

    refused = bench(plan, environment, "--backend", "tensorrt")
    trusted = bench(
        plan, environment, "--backend", "tensorrt", "--trust-code", "--scenario", "latency"
    )

    assert refused.returncode == 2
    assert "--trust-code" in refused.stderr
    assert trusted.returncode == 0, trusted.stderr
    assert {row["precision"] for row in rows_of(tmp_path)} == {"fp16"}
