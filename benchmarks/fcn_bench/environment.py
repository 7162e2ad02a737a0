"""Describe the machine of a measurement, and the CPU time that other processes took."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.libraries import check_libraries
from fcn_deploy.machine import describe_machine

__all__ = ["ForeignCpu", "describe_environment"]

# a thread setting from outside changes every number; ours are given to each library in its API
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


def describe_environment(*, threads: int, streams: int) -> dict[str, Any]:
    """Describe machine, libraries and thread settings as the report's `environment`.

    Args:
        threads: that every row was given.
        streams: of the saturated rows.
    """
    machine = describe_machine()
    versions = {
        status.distribution: status.version for status in check_libraries() if status.version
    }
    return {
        "cpu": machine.cpu,
        "cores": machine.usable_cores,
        "physical_cores": machine.physical_cores,
        "logical_cores": machine.logical_cores,
        "cpu_features": [feature.name for feature in machine.features if feature.present],
        "quota_cores": machine.quota_cores,
        "gpu": list(machine.gpus) or None,
        "system": f"{machine.system} {platform.release()} {machine.architecture}",
        "python": machine.python,
        "libraries": versions,
        "threads": {
            "per_row": threads,
            "throughput_streams": streams,
            "variables": {
                name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ
            },
        },
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


@dataclass(frozen=True, slots=True)
class _Ticks:
    busy: int
    total: int
    own: int


class ForeignCpu:
    """Share of the CPUs that processes other than ours took since the last call.

    Counts what the kernel books in ``/proc/stat``, time stolen by a hypervisor included, on the
    CPUs that this process may use; its resolution is 10 ms.

    Args:
        pids: gives the processes that are ours.
        root: where ``proc`` is.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], *, root: Path = Path("/")) -> None:
        self._pids = pids
        self._proc = root / "proc"
        self._before: _Ticks | None = None

    def __call__(self) -> float | None:
        """Give the share, 0..1; None at the first call and where the kernel does not say."""
        before, self._before = self._before, self._read()
        now = self._before
        if before is None or now is None or now.total <= before.total:
            return None
        foreign = (now.busy - before.busy) - (now.own - before.own)
        return min(1.0, max(0.0, foreign / (now.total - before.total)))

    def _read(self) -> _Ticks | None:
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError:
            return None
        names = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        busy = total = 0
        for line in lines:
            name, *values = line.split()
            if name in names:
                # user nice system idle iowait irq softirq steal; guest time is within user's
                ticks = [int(value) for value in values[:8]]
                total += sum(ticks)
                busy += sum(ticks) - ticks[3] - ticks[4]
        return _Ticks(busy, total, sum(self._own(pid) for pid in self._pids()))

    def _own(self, pid: int) -> int:
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except OSError:  # it has ended
            return 0
        fields = text[text.rindex(")") + 2 :].split()  # the name before may hold blanks
        return int(fields[11]) + int(fields[12])  # utime and stime
