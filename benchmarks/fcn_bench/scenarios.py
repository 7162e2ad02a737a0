"""Which processes measure a size, and which rows their series make."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fcn_bench.report import RowKey
from fcn_bench.rounds import Series, Track, Work
from fcn_bench.targets import Candidate
from fcn_bench.timing import Scope
from fcn_bench.torch_network import TorchMode
from fcn_deploy.errors import BenchmarkError

__all__ = [
    "SCENARIOS",
    "Job",
    "Measured",
    "Scenario",
    "check_scenarios",
    "measured_rows",
    "plan_jobs",
]

Scenario = Literal["latency", "throughput"]
"""One call after the other; or as many at once as there are streams."""

SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
_SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class Job:
    """What one process runs.

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
    def works(self) -> tuple[Work, ...]:
        """What it repeats: a frame's run times the network in it; saturated, each has its own."""
        return ("frame",) if self.streams == 1 else ("compute", "frame")


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples of one row.

    Attributes:
        durations_ms: of calls, by round.
        cost_ms: what two rows are compared by, by round: calls where the scenario is latency,
            the time that a frame takes where it is throughput.
        throughput_fps: frames a second.
        series: where they come from.
    """

    key: RowKey
    durations_ms: list[list[float]]
    cost_ms: list[list[float]]
    throughput_fps: float
    series: Series


def check_scenarios(names: Sequence[str]) -> tuple[Scenario, ...]:
    """Refuse scenarios that are unknown or not of this version.

    Raises:
        BenchmarkError: one is neither latency nor throughput.
    """
    for name in names:
        if name == "stream":
            raise BenchmarkError(
                "the scenario 'stream' is not in this version.",
                hint=f"Choose among {', '.join(SCENARIOS)}.",
            )
        if name not in SCENARIOS:
            raise BenchmarkError(
                f"the scenario is {name!r}; expected one of {', '.join(SCENARIOS)}."
            )
    if not names:
        raise BenchmarkError("no scenario was given.", hint=f"Choose of {', '.join(SCENARIOS)}.")
    return tuple(scenario for scenario in SCENARIOS if scenario in names)


def plan_jobs(
    candidates: Sequence[Candidate],
    torch_modes: Sequence[TorchMode],
    scenarios: Sequence[Scenario],
    *,
    streams: int,
) -> tuple[Job, ...]:
    """Decide on the processes of one size.

    PyTorch has one, whose plain loop serves both scenarios: its operators use all cores already.
    A candidate has one for latency and, where there are several streams, one for throughput.
    """
    jobs = [Job(None, mode, 1, tuple(scenarios)) for mode in torch_modes]
    for candidate in candidates:
        if streams == 1:
            jobs.append(Job(candidate, None, 1, tuple(scenarios)))
            continue
        if "latency" in scenarios:
            jobs.append(Job(candidate, None, 1, ("latency",)))
        if "throughput" in scenarios:
            jobs.append(Job(candidate, None, streams, ("throughput",)))
    return tuple(jobs)


def measured_rows(
    job: Job, parts: Sequence[tuple[Track, Series]], *, batch: int, height: int, width: int
) -> list[Measured]:
    """Make a job's rows of the series of its tracks.

    Raises:
        BenchmarkError: a duration is zero, negative or no number.
    """
    rows = []
    for scenario in job.scenarios:
        for scope in _SCOPES:
            key = RowKey(
                job.backend, job.precision, job.mode, scenario, scope, batch, height, width
            )
            work: Work = "frame" if job.streams == 1 or scope == "frame" else "compute"
            series = next(series for track, series in parts if track.work == work)
            if all(series.durations_ms(scope)):  # on a CPU nothing is transferred
                rows.append(_measured_row(job, key, series, scope))
    return rows


def _measured_row(job: Job, key: RowKey, series: Series, scope: Scope) -> Measured:
    durations = series.durations_ms(scope)
    if not all(0 < value < math.inf for part in durations for value in part):
        raise BenchmarkError(
            f"{key} has a duration that is zero, negative or no number.",
            hint="This machine's clock cannot be used for measuring.",
        )
    seconds_a_call = [
        # from one result to the next: of one stream its calls, of several their common rate
        sum(values) / len(values) / 1000 if job.streams == 1 else 1 / part.calls_per_second
        for part, values in zip(series.slices, durations, strict=True)
    ]
    counts = [len(values) for values in durations]
    spent = sum(map(operator.mul, seconds_a_call, counts))
    frame_cost = [[1000 * seconds / key.batch] for seconds in seconds_a_call]
    return Measured(
        key=key,
        durations_ms=durations,
        cost_ms=durations if key.scenario == "latency" else frame_cost,
        throughput_fps=sum(counts) * key.batch / spent,
        series=series,
    )
