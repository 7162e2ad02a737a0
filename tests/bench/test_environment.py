"""Where a run was made, and what other processes did meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fcn_bench.environment import ForeignCpu, describe_environment


class FakeProc:
    """Two CPUs and one process of ours, in a folder laid out as the kernel does."""

    def __init__(self, root: Path, cpus: list[int]) -> None:
        self.root = root
        self._cpus = cpus
        (root / "proc" / "7").mkdir(parents=True)

    def write(self, *, busy: int, idle: int, ours: int, steal: int = 0) -> None:
        lines = ["cpu 1 2 3 4 5 6 7 8 9 10"]
        lines += [f"cpu{cpu} {busy} 0 0 {idle} 0 0 0 {steal} 0 0" for cpu in self._cpus]
        lines += ["cpu9999 500 0 0 0 0 0 0 0 0 0", "intr 1 2 3"]
        (self.root / "proc" / "stat").write_text("\n".join(lines))
        head = "7 (a name) with (blanks) S " + " ".join(["0"] * 10)
        (self.root / "proc" / "7" / "stat").write_text(f"{head} {ours} 0 0 0")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path, sorted(os.sched_getaffinity(0)))


def test_foreign_share_is_what_was_busy_less_our_own(proc: FakeProc) -> None:
    count = len(os.sched_getaffinity(0))
    meter = ForeignCpu(lambda: [7], root=proc.root)
    proc.write(busy=100, idle=100, ours=50)
    first = meter()
    proc.write(busy=180, idle=120, ours=50 + 50 * count)

    second = meter()

    assert first is None
    # every CPU: 100 ticks passed, 80 of them busy, 50 of these ours
    assert second == pytest.approx(0.3)


def test_time_stolen_by_the_hypervisor_is_foreign(proc: FakeProc) -> None:
    meter = ForeignCpu(list, root=proc.root)
    proc.write(busy=0, idle=0, ours=0)
    meter()
    proc.write(busy=0, idle=75, ours=0, steal=25)

    assert meter() == pytest.approx(0.25)


def test_processes_that_have_ended_count_for_nothing(proc: FakeProc) -> None:
    meter = ForeignCpu(lambda: [7, 8], root=proc.root)
    proc.write(busy=0, idle=0, ours=0)
    meter()
    proc.write(busy=50, idle=50, ours=0)

    assert meter() == pytest.approx(0.5)


def test_nothing_is_said_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    meter = ForeignCpu(list, root=tmp_path)

    assert meter() is None
    assert meter() is None


def test_environment_names_machine_libraries_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    found = describe_environment(threads=2, streams=2)

    assert found["cores"] >= 1
    assert found["libraries"]["numpy"]
    assert found["threads"]["per_row"] == 2
    assert found["threads"]["variables"]["OMP_NUM_THREADS"] == "3"
    json.dumps(found, allow_nan=False)
