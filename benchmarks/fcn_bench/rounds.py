"""Let rows take turns: in every round each of them runs for a slice of time, in another order.

What drifts while a benchmark runs (clock frequency, temperature, other programs) then falls on all
rows alike, and the rounds are the units that the interval of a speed-up is drawn from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fcn_bench.stats import relative_spread, trend
from fcn_bench.timing import Scope, Slice, WarmUp

__all__ = [
    "CpuShare",
    "Interrupted",
    "Runner",
    "Schedule",
    "Series",
    "TimingTask",
    "Workload",
    "interleave",
    "turn_order",
]

Workload = Literal["frame", "compute", "stream"]
"""What is repeated: a whole frame, which times the network in it as well; the network alone; or
frames that arrive at a fixed rate."""

_ROUNDS = 10
_MORE_ROUNDS = 5
_MORE_WITHIN_SECONDS = 120.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C between or in slices; `series` holds the rounds that were completed."""

    def __init__(self, series: list[Series]) -> None:
        super().__init__()
        self.series = series


class Runner(Protocol):
    """Something loaded and ready to be timed."""

    def warm_up(self, workload: Workload, *, calls: int | None) -> WarmUp: ...

    def measure(self, workload: Workload, *, seconds: float, min_calls: int) -> Slice: ...


class CpuShare(Protocol):
    """Tells which share of the CPUs other processes took since it was last asked."""

    def __call__(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to measure.

    Attributes:
        rounds: None makes 10, and up to 5 more while a row drifts or spreads and two minutes are
            not over.
        min_duration_seconds: measured time of each row over 10 rounds, or over `rounds`.
        warmup_calls: None warms up until steady.
        min_calls: fewest calls of a row in a round.
    """

    rounds: int | None = None
    min_duration_seconds: float = 5.0
    warmup_calls: int | None = None
    min_calls: int = 2

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be 1 or more")
        if not 0 <= self.min_duration_seconds < math.inf:
            raise ValueError(
                f"min_duration is {self.min_duration_seconds}; it must be 0 or more seconds"
            )
        if self.warmup_calls is not None and self.warmup_calls < 0:
            raise ValueError(f"warmup is {self.warmup_calls}; it must be 0 or more")

    @property
    def slice_seconds(self) -> float:
        return self.min_duration_seconds / (self.rounds or _ROUNDS)


@dataclass(frozen=True, slots=True)
class TimingTask:
    """One runner and one of its workloads, named for progress messages."""

    name: str
    runner: Runner
    workload: Workload


@dataclass(slots=True)
class Series:
    """The measurements of one task: one slice a round.

    Attributes:
        foreign_cpu: share of the CPUs that other processes took, in each round.
    """

    warm: WarmUp
    slices: list[Slice] = field(default_factory=list)
    foreign_cpu: list[float] = field(default_factory=list)

    def durations_ms(self, scope: Scope) -> list[list[float]]:
        """Give the durations of a scope, by round; rounds are empty where it has none."""
        every = [[timing.of(scope) for timing in part.timings] for part in self.slices]
        return [[value for value in part if value is not None] for part in every]

    @property
    def steady(self) -> bool:
        if any(part.unwritten for part in self.slices):
            return True  # a queue that grows does not settle in more rounds
        durations = [value for part in self.durations_ms("frame") for value in part]
        drift = trend(durations)
        return relative_spread(durations) <= 0.25 and not (
            drift.significant and abs(drift.drift) > 0.05
        )


def turn_order(count: int, round_index: int) -> list[int]:
    """Give the order of a round: every rotation forwards, then backwards.

    Over 2 * count rounds each row is equally often at each place, and follows others about
    equally often.
    """
    start = round_index // 2 % count
    order = [*range(start, count), *range(start)]
    return order[::-1] if round_index % 2 else order


def interleave(
    tasks: Sequence[TimingTask],
    schedule: Schedule,
    *,
    foreign_cpu: CpuShare,
    on_step: Callable[[str], None] = lambda message: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Series]:
    """Warm every task up, then let them take turns.

    Args:
        on_step: told what is about to happen; never called inside a slice.

    Returns:
        One series for each task, in their order.

    Raises:
        Interrupted: Ctrl-C; it holds the rounds that every task completed.
    """
    every: list[Series] = []
    done = 0
    try:
        for task in tasks:
            on_step(f"warming up {task.name}")
            every.append(Series(_warm_up(task, schedule, tasks, every)))
        start = clock()
        least = schedule.rounds or _ROUNDS
        most = schedule.rounds or _ROUNDS + _MORE_ROUNDS
        while done < least or (
            done < most
            and clock() - start < _MORE_WITHIN_SECONDS
            and not all(series.steady for series in every)
        ):
            on_step(f"round {done + 1} of {least if done < least else most}")
            for index in turn_order(len(tasks), done):
                _take_turn(tasks[index], every[index], schedule, foreign_cpu)
            done += 1
    except KeyboardInterrupt:
        for series in every:
            del series.slices[done:]
        raise Interrupted(every if done else []) from None
    return every


def _warm_up(
    task: TimingTask, schedule: Schedule, tasks: Sequence[TimingTask], warmed: Sequence[Series]
) -> WarmUp:
    """Warm up; a runner that is warm from another workload makes one call of this one."""
    for other, series in zip(tasks, warmed, strict=False):
        if other.runner is task.runner:
            task.runner.warm_up(task.workload, calls=1)
            return series.warm
    return task.runner.warm_up(task.workload, calls=schedule.warmup_calls)


def _take_turn(task: TimingTask, series: Series, schedule: Schedule, foreign_cpu: CpuShare) -> None:
    foreign_cpu()
    part = task.runner.measure(
        task.workload, seconds=schedule.slice_seconds, min_calls=schedule.min_calls
    )
    share = foreign_cpu()
    series.slices.append(part)
    if share is not None:
        series.foreign_cpu.append(share)
