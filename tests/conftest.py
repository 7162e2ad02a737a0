"""What all tests share: seeded random numbers, and a CI in which nothing is skipped."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from fcn_deploy.machine import CpuAbilities

# Reasons that hold even in CI, because no change to this repository could end them.
ALLOWED_SKIPS = (
    "needs an NVIDIA GPU",
    "this CPU has no ",
    "PyCUDA needs CUDA's headers",
    "the CUDA toolkit is not here",
)

# tests import onnxruntime as its users do, before anything of ours has turned its reports off
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

hypothesis.settings.register_profile(
    "fcn-deploy",
    deadline=None,  # other tests, compilers and builds share the machine
    derandomize="CI" in os.environ,  # a red CI run means that something changed
)
hypothesis.settings.load_profile("fcn-deploy")


@pytest.fixture(autouse=True, scope="session")
def users_cache() -> Generator[Path, None, None]:
    """Keep the user's own cache out of the tests, and out of the processes that they start."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield Path(folder)


@pytest.fixture(autouse=True)
def log_levels() -> Generator[None]:
    """Set back what a command that was run in the test's own process sets for the whole process."""
    loggers = [logging.getLogger(name) for name in ("fcn_deploy", "fcn_export", "fcn_bench")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20260)


@pytest.fixture
def set_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[CpuAbilities], None]:
    """Let every rule see a CPU, and an OpenVINO on it, that have just these abilities.

    What does not have them computes all the same: OpenVINO takes fp32 for bf16.
    """

    def replace_abilities(abilities: CpuAbilities) -> None:
        monkeypatch.setattr("fcn_deploy.machine.cpu_abilities", lambda: abilities)
        monkeypatch.setattr(
            "fcn_deploy.backends.openvino.openvino_has_bf16", lambda: abilities.bf16
        )

    return replace_abilities


@pytest.fixture(params=[True, False], ids=["bf16 and int8", "neither bf16 nor int8"])
def cpu(request: pytest.FixtureRequest, set_cpu: Callable[[CpuAbilities], None]) -> CpuAbilities:
    """Run a test twice: on a CPU with everything, and on one with nothing."""
    abilities = CpuAbilities(bf16=request.param, int8=request.param)
    set_cpu(abilities)
    return abilities


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Leave alone what the user's own fcn-bench --tune has kept, and do not be led by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where FCN_FORBID_SKIPS is set and the reason is not allowed."""
    if not os.environ.get("FCN_FORBID_SKIPS") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = _reason(report.longrepr)
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipping is forbidden here, and this skips: {reason}"


def _reason(longrepr: object) -> str:
    # pytest gives a skip's (file, line, reason)
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")
