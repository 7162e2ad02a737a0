"""make gpu-check over the simulated GPU: every step runs, and what fails is in the report."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fcn_export.engine
from fcn_bench import gpu_check, gpu_measure
from fcn_deploy.errors import BenchmarkError
from tests.deploy.tensorrt.fake_driver import build_host_kernel
from tests.deploy.tensorrt.simulated_driver import SimDevice, SimDriver
from tests.deploy.tensorrt.simulated_tensorrt import make_plan
from tests.deploy.tensorrt.test_backend import VERSIONS, write_artifact
from tests.deploy.tensorrt.worlds import use_head, use_simulation

TRTEXEC = """#!/bin/sh
echo "[I] GPU Compute Time: the GPU latency to execute the kernels for a query."
echo "[I] Latency: min = 1.5 ms, max = 2.5 ms, mean = 1.7 ms, median = 1.6 ms"
echo "[I] GPU Compute Time: min = 1.1 ms, max = 2.2 ms, mean = 1.3 ms, median = 1.2 ms"
"""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimDriver]:
    made = SimDriver()
    use_simulation(monkeypatch, made)
    kernel = ctypes.CDLL(str(build_host_kernel(tmp_path))).head_labels_on_host
    use_head(monkeypatch, kernel)

    def build(path: Path, config: Any, *, tensorrt: Any) -> Any:
        ends = {name: (p.min, p.opt, p.max) for name, p in config.profiles[0].items()}
        version = VERSIONS[config.library]
        plan = make_plan(path.read_bytes(), [ends], library=config.library, version=version)
        return SimpleNamespace(
            plan=plan, build_seconds=0.1, seconds=0.1, layer_shares={}, warnings=()
        )

    monkeypatch.setattr(fcn_export.engine, "build_engine", build)
    monkeypatch.setattr(gpu_check, "device_problem", lambda name=None: None)
    monkeypatch.setattr(
        gpu_check, "open_device", lambda name="auto", *, ordinal=0: SimDevice(made, ordinal=ordinal)
    )
    yield made
    assert made.leftovers() == []


def run(tmp_path: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    artifact = write_artifact(tmp_path, {})
    output = tmp_path / "report"

    status = gpu_check.main([str(artifact), "--output", str(output), "--runs", "3", *options])

    report = json.loads((output / "report.json").read_text())
    return status, {step["name"]: step for step in report["steps"]}


def test_every_step_runs_and_is_reported(
    driver: SimDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text(TRTEXEC)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    status, steps = run(tmp_path)

    assert [step["error"] for step in steps.values() if step["status"] == "failed"] == []
    assert status == 0
    for library in VERSIONS:
        for precision in ("fp32", "fp16", "int8"):
            labels = steps[f"{library} {precision} labels over pycuda"]["found"]
            assert labels == {"label_agreement": 1.0, "runs_at_once_agree": True}
            times = steps[f"{library} {precision} times, CUDA graphs"]["found"]
            assert 0 < times["compute_ms"] < times["transfer_ms"]
            assert steps[f"{library} {precision} head kernel"]["found"]["label_agreement"] > 0.9999
    assert steps["tensorrt fp32 trtexec"]["found"] == {"compute_ms": 1.2, "latency_ms": 1.6}
    assert steps["tensorrt-rtx fp32 trtexec"]["status"] == "skipped"
    assert steps["tensorrt fp32 layers"]["found"]["slowest"] == {"backbone": 1.0, "head": 2.0}
    assert steps["torch"]["found"] == {"skipped": "this PyTorch has no CUDA"}
    assert "please send report.json" in capsys.readouterr().out
    assert "| tensorrt fp32 build | ok |" in (tmp_path / "report" / "report.md").read_text()


def test_a_plan_with_other_labels_fails_its_step_and_the_others_go_on(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "agreement_with", lambda wanted, found: 0.5)

    status, steps = run(tmp_path, "--library", "tensorrt")

    failed = [name for name, step in steps.items() if step["status"] == "failed"]
    assert status == 1
    assert "tensorrt int8 labels over pycuda" in failed
    assert (
        "0.50000 of the labels are ONNX Runtime's; at least 0.999 expected"
        in (steps["tensorrt fp32 labels over pycuda"]["error"])
    )
    assert "Traceback" in steps["tensorrt fp32 labels over pycuda"]["traceback"]
    assert steps["tensorrt int8 layers"]["status"] == "ok"
    assert not any(name.startswith("tensorrt-rtx") for name in steps)


def test_a_build_that_fails_leaves_its_plan_out(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise BenchmarkError("no kernel for this layer")

    monkeypatch.setattr(fcn_export.engine, "build_engine", fail)

    status, steps = run(tmp_path, "--library", "tensorrt")

    assert status == 1
    assert "no kernel for this layer" in steps["tensorrt fp32 build"]["error"]
    assert "tensorrt fp32 layers" not in steps


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    status = gpu_check.main([])

    assert status == 2
    assert "nothing can be checked: " in capsys.readouterr().err


def test_labels_of_another_shape_are_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"gave labels \[3\]; expected \[2\]"):
        gpu_measure.agreement_with(np.zeros(2), np.zeros(3))


def test_a_trtexec_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho 'engine is of another version' >&2\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    found = gpu_measure.run_trtexec(tmp_path / "a.plan", {"image": np.zeros((1, 2, 3, 3))})

    assert found == {"error": "status 3: engine is of another version"}
