"""Time contenders in turns on the same frames, and compare their labels."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from fcn_bench.environment import ForeignCpu
from fcn_bench.rounds import Schedule, TimingTask, interleave
from fcn_bench.stats import Ratio, ratio_of_medians
from fcn_deploy.names import Array
from research.peers.contenders import Contender
from research.peers.process import Process

__all__ = ["LEAST_AGREEMENT", "ContenderResult", "Race", "run_race"]

LEAST_AGREEMENT = 0.999
"""Share of equal labels below which a contender labels otherwise, and its time says nothing."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ContenderResult:
    """What one contender gave.

    Attributes:
        frames_ms: durations of whole calls, by round.
        network_ms: of the network's part of each.
        agreement: share of pixels with the reference's label.
    """

    contender: Contender
    frames_ms: list[list[float]]
    network_ms: list[list[float]]
    agreement: float

    @property
    def median_ms(self) -> float:
        return statistics.median(value for part in self.frames_ms for value in part)

    @property
    def has_same_labels(self) -> bool:
        return self.agreement >= LEAST_AGREEMENT

    @property
    def network_median_ms(self) -> float:
        return statistics.median(value for part in self.network_ms for value in part)


@dataclass(frozen=True, slots=True)
class Race:
    """One run of contenders on the same frames.

    Attributes:
        results: in the order given; the first is the reference.
        foreign_cpu: the median share of the CPUs that other programs took, None if unknown.
        apart: the rows did not take turns.
    """

    results: tuple[ContenderResult, ...]
    rounds: int
    foreign_cpu: float | None
    apart: bool = False

    def fastest(self, library: str, precision: str = "fp32") -> ContenderResult | None:
        """Give a library's fastest result of one precision, of those with the same labels."""
        found = [
            result
            for result in self.results
            if (result.contender.library, result.contender.precision) == (library, precision)
            and result.has_same_labels
        ]
        return min(found, key=lambda result: result.median_ms, default=None)

    def ratio(self, slower: ContenderResult, faster: ContenderResult) -> Ratio:
        """Say how many times `slower` takes the time of `faster`, with a 95 % interval."""
        return ratio_of_medians(slower.frames_ms, faster.frames_ms)


def run_race(
    contenders: Sequence[Contender],
    frames_bgr: Sequence[Array],
    *,
    batch: int,
    schedule: Schedule,
    say: Say,
    apart: bool = False,
) -> Race:
    """Load every contender in a process of its own, compare labels, and time them in turns.

    Args:
        frames_bgr: uint8 [H, W, 3] each, of one size.
        batch: frames in one call.
        apart: load, compare and time one contender after another, where memory does not hold all.

    Raises:
        BenchmarkError: a contender cannot be loaded, or its process ended.
    """
    frames = list(frames_bgr)
    batches = [frames[start : start + batch] for start in range(0, len(frames), batch)]
    groups = [[contender] for contender in contenders] if apart else [list(contenders)]
    reference: list[Array] = []
    results: list[ContenderResult] = []
    foreign: list[float] = []
    for group in groups:
        with ExitStack() as stack:
            running = [stack.enter_context(Process(contender, batches)) for contender in group]
            for process in running:
                process.wait_until_open()
            say(f"{', '.join(contender.name for contender in group)}: loaded")
            agreements = []
            for process in running:
                labels = process.labels()
                reference = reference or labels
                agreements.append(_agreement(labels, reference))
                say(f"{process.contender.name}: {agreements[-1]:.3%} of the labels as the first")
            tasks = [TimingTask(process.contender.name, process, "frame") for process in running]
            share = ForeignCpu(lambda: [os.getpid(), *(process.pid for process in running)])  # noqa: B023  # asked within this turn of the loop
            series = interleave(tasks, schedule, foreign_cpu=share, on_step=say)
        for contender, found, agreement in zip(group, series, agreements, strict=True):
            frames_ms, network_ms = found.durations_ms("frame"), found.durations_ms("compute")
            results.append(ContenderResult(contender, frames_ms, network_ms, agreement))
            foreign.extend(found.foreign_cpu)
    median_foreign = statistics.median(foreign) if foreign else None
    return Race(tuple(results), len(results[0].frames_ms), median_foreign, apart)


def _agreement(found: Sequence[Array], reference: Sequence[Array]) -> float:
    return float(np.mean([np.mean(a == b) for a, b in zip(found, reference, strict=True)]))
