"""Decide which processes measure a size, and make rows of what they measured."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fcn_bench.report import RowKey
from fcn_bench.rounds import Series, TimingTask, Workload
from fcn_bench.targets import Candidate
from fcn_bench.timing import Scope
from fcn_bench.torch_baseline import TorchMode
from fcn_deploy import machine
from fcn_deploy.errors import BenchmarkError

__all__ = [
    "DEFAULT_SCENARIOS",
    "SCENARIOS",
    "Job",
    "MeasuredRow",
    "Scenario",
    "check_scenarios",
    "list_jobs",
    "measured_rows",
    "torch_modes",
]

Scenario = Literal["latency", "throughput", "stream"]
"""One call after the other; as many at once as there are streams; frames at a fixed rate."""

SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
DEFAULT_SCENARIOS: tuple[Scenario, ...] = ("latency", "throughput")
_SCOPES: dict[Scenario, tuple[Scope, ...]] = {
    "latency": ("compute", "transfer", "frame"),
    "throughput": ("compute", "transfer", "frame"),
    "stream": ("stream",),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One process of a benchmark, and what it runs.

    Attributes:
        candidate: None for PyTorch, which `torch_mode` then describes.
        streams: calls at once.
        scenarios: that its series serve.
    """

    candidate: Candidate | None
    torch_mode: TorchMode | None
    streams: int
    scenarios: tuple[Scenario, ...]

    @property
    def backend(self) -> str:
        return "torch" if self.candidate is None else self.candidate.backend

    @property
    def precision(self) -> str:
        if self.candidate is not None:
            return str(self.candidate.precision)
        return "bf16" if self.torch_mode == "bf16-autocast" else "fp32"

    @property
    def mode(self) -> str:
        if self.torch_mode is not None:
            return self.torch_mode
        return f"{self.streams} stream" + ("s" if self.streams > 1 else "")

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision} {self.mode}"

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """What it repeats. One frame at a time also times the network; several streams do not."""
        if self.streams > 1:
            return "compute", "frame"
        frames: tuple[Workload, ...] = () if self.scenarios == ("stream",) else ("frame",)
        return (*frames, "stream") if "stream" in self.scenarios else frames


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """Samples of one row.

    Attributes:
        durations_ms: of calls, by round.
        cost_ms: what two rows are compared by, by round: the time that a frame takes where the
            scenario is throughput, else `durations_ms`.
        throughput_fps: frames a second.
        series: where they come from.
        rate_fps: frames that arrived in a second; None where calls follow one another.
    """

    key: RowKey
    durations_ms: list[list[float]]
    cost_ms: list[list[float]]
    throughput_fps: float
    series: Series
    rate_fps: float | None = None

    @property
    def unwritten(self) -> int:
        """Frames of a stream that were not written when their turn ended."""
        return sum(part.unwritten for part in self.series.slices)


def check_scenarios(names: Sequence[str]) -> tuple[Scenario, ...]:
    """Refuse scenarios that are unknown.

    Raises:
        BenchmarkError: one is none of `SCENARIOS`, or there is none.
    """
    for name in names:
        if name not in SCENARIOS:
            raise BenchmarkError(
                f"the scenario is {name!r}; expected one of {', '.join(SCENARIOS)}."
            )
    if not names:
        raise BenchmarkError("no scenario was given.", hint=f"Choose of {', '.join(SCENARIOS)}.")
    return tuple(scenario for scenario in SCENARIOS if scenario in names)


def torch_modes(*, baseline: bool, compile: bool) -> tuple[tuple[TorchMode, ...], tuple[str, ...]]:
    """Give PyTorch's rows, and notes on those that are missing.

    bf16-autocast is among them only where the CPU has bf16: without, it is many times slower.

    Args:
        baseline: there is a PyTorch model.
        compile: torch.compile was asked for.

    Raises:
        BenchmarkError: it was asked for, and there is no model.
    """
    if not baseline:
        if compile:
            raise BenchmarkError("--compile needs a PyTorch baseline.", hint="Name --baseline.")
        return (), ()
    modes: list[TorchMode] = ["eager", "channels_last"]
    notes: tuple[str, ...] = ()
    if machine.cpu_abilities().bf16:
        modes.append("bf16-autocast")
    else:
        notes = ("this CPU has no bf16, so PyTorch has no bf16-autocast row.",)
    if compile:
        modes.append("compile")
    return tuple(modes), notes


def list_jobs(
    candidates: Sequence[Candidate],
    modes: Sequence[TorchMode],
    scenarios: Sequence[Scenario],
    *,
    streams: int,
) -> tuple[Job, ...]:
    """Decide on the processes of one size.

    PyTorch has one, whose plain loop serves all scenarios: its operators use all cores already.
    A candidate has one for latency and frames at a fixed rate and, where there are several
    streams, one for throughput.
    """
    jobs = [Job(None, mode, 1, tuple(scenarios)) for mode in modes]
    for candidate in candidates:
        if streams == 1:
            jobs.append(Job(candidate, None, 1, tuple(scenarios)))
            continue
        one_at_a_time = tuple(name for name in scenarios if name != "throughput")
        if one_at_a_time:
            jobs.append(Job(candidate, None, 1, one_at_a_time))
        if "throughput" in scenarios:
            jobs.append(Job(candidate, None, streams, ("throughput",)))
    return tuple(jobs)


def measured_rows(
    job: Job,
    parts: Sequence[tuple[TimingTask, Series]],
    *,
    batch: int,
    height: int,
    width: int,
    rate_fps: float | None = None,
) -> list[MeasuredRow]:
    """Make a job's rows of the series of its tasks.

    Args:
        rate_fps: frames that arrived in a second of a stream.

    Raises:
        BenchmarkError: a duration is zero, negative or no number.
    """
    rows = []
    for scenario in job.scenarios:
        for scope in _SCOPES[scenario]:
            key = RowKey(
                job.backend,
                precision=job.precision,
                mode=job.mode,
                scenario=scenario,
                scope=scope,
                batch=batch,
                height=height,
                width=width,
            )
            workload = _workload(job, scope)
            series = next(series for task, series in parts if task.workload == workload)
            if _has_scope(job, series, scope):
                rows.append(
                    _measured_row(job, key=key, series=series, scope=scope, rate_fps=rate_fps)
                )
    return rows


def _has_scope(job: Job, series: Series, scope: Scope) -> bool:
    """On a CPU nothing is transferred; calls that saturate a GPU copy: their rate is no compute."""
    if scope == "compute" and job.streams > 1:
        return not all(series.durations_ms("transfer"))
    return all(series.durations_ms(scope))


def _workload(job: Job, scope: Scope) -> Workload:
    if scope == "stream":
        return "stream"
    return "frame" if job.streams == 1 or scope == "frame" else "compute"


def _measured_row(
    job: Job, key: RowKey, series: Series, scope: Scope, rate_fps: float | None
) -> MeasuredRow:
    durations = series.durations_ms(scope)
    if not all(0 < value < math.inf for part in durations for value in part):
        raise BenchmarkError(
            f"{key} has a duration that is zero, negative or no number.",
            hint="This machine's clock cannot be used for measuring.",
        )
    seconds_a_call = [
        # from one result to the next: of one call at a time its duration, else the common rate
        sum(values) / len(values) / 1000
        if job.streams == 1 and scope != "stream"
        else 1 / part.calls_per_second
        for part, values in zip(series.slices, durations, strict=True)
    ]
    counts = [
        len(values) - part.unwritten for part, values in zip(series.slices, durations, strict=True)
    ]
    spent = sum(map(operator.mul, seconds_a_call, counts))
    frame_cost = [[1000 * seconds / key.batch] for seconds in seconds_a_call]
    return MeasuredRow(
        key=key,
        durations_ms=durations,
        cost_ms=frame_cost if key.scenario == "throughput" else durations,
        throughput_fps=sum(counts) * key.batch / spent,
        series=series,
        rate_fps=rate_fps if scope == "stream" else None,
    )
