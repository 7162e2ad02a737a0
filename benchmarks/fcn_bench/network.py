"""Run any network in three steps that are timed apart: prepare, compute, finish."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from fcn_bench.rounds import Workload
from fcn_bench.timing import Call, Timing
from fcn_deploy.backends.base import RunTimes
from fcn_deploy.names import Array

__all__ = ["Network", "TimedNetwork", "segment", "timed_call"]


class Network(Protocol):
    """A loaded network. `prepare`, `compute` and `finish` in a row are one frame's whole way."""

    @property
    def num_classes(self) -> int | None: ...

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        """Make the network's input of frames of one size, uint8 [H, W, 3] each."""
        ...

    def compute(self, prepared: Any) -> Any:
        """Run the network alone. May be called twice on the same input."""
        ...

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        """Give labels at the frames' own size, uint8 (or uint16) [H, W] each."""
        ...

    def labels_and_scores(self, frame_bgr: Array) -> tuple[Array, Array | None]:
        """Give labels as `finish` does, and class scores at the frame's size, float32 [C, H, W].

        The scores are None where the network hides them.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class TimedNetwork(Network, Protocol):
    """A network on a device that has a clock of its own."""

    def compute_timed(self, prepared: Any) -> tuple[Any, RunTimes]:
        """Run the network as `compute` does, and say what the device took for it."""
        ...


def segment(network: Network, frames_bgr: Sequence[Array]) -> list[Array]:
    """Frames in, uint8 [H, W, 3] each, labels out, uint8 [H, W]: the three steps in a row."""
    prepared = network.prepare(frames_bgr)
    return network.finish(network.compute(prepared), frames_bgr)


def timed_call(
    network: Network, batches: Sequence[Sequence[Array]], *, workload: Workload, first: int = 0
) -> Call:
    """Make a call that works on one batch after the other, over and over.

    Args:
        batches: frames, uint8 [H, W, 3], of one size in each.
        workload: ``"frame"`` does all three steps; ``"compute"`` prepares every batch beforehand.
        first: index of the batch to begin with, so that threads do not work on the same one.
    """
    if workload == "compute":
        inputs = itertools.cycle([network.prepare(batch) for batch in batches])

        def compute_once() -> Timing:
            prepared = next(inputs)
            start = time.perf_counter_ns()
            _, times = _compute(network, prepared)
            return _timing((time.perf_counter_ns() - start) / 1e6, times)

        return compute_once

    turns = itertools.cycle([*batches[first % len(batches) :], *batches[: first % len(batches)]])

    def frame_once() -> Timing:
        frames = next(turns)
        start = time.perf_counter_ns()
        prepared = network.prepare(frames)
        computed, times = _compute(network, prepared)
        network.finish(computed, frames)
        return _timing((time.perf_counter_ns() - start) / 1e6, times)

    return frame_once


def _compute(network: Network, prepared: Any) -> tuple[Any, float | RunTimes]:
    """Run the network: what it gives, and the device's times, or the ms of the wall's clock."""
    if isinstance(network, TimedNetwork):
        return network.compute_timed(prepared)
    start = time.perf_counter_ns()
    computed = network.compute(prepared)
    return computed, (time.perf_counter_ns() - start) / 1e6


def _timing(frame_ms: float, times: float | RunTimes) -> Timing:
    if isinstance(times, RunTimes):
        return Timing(frame_ms, times.compute_ms, times.transfer_ms)
    return Timing(frame_ms, times)
