"""One network, whoever runs it, in three steps that can be timed: prepare, compute, finish."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Protocol

from fcn_bench.rounds import Work
from fcn_bench.timing import Call, Timing
from fcn_deploy.tensors import Array

__all__ = ["Network", "segment", "timed_call"]


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


def segment(network: Network, frames_bgr: Sequence[Array]) -> list[Array]:
    """Frames in, labels out: the three steps in a row."""
    prepared = network.prepare(frames_bgr)
    return network.finish(network.compute(prepared), frames_bgr)


def timed_call(
    network: Network, batches: Sequence[Sequence[Array]], *, work: Work, first: int = 0
) -> Call:
    """Make a call that works on one batch after the other, over and over.

    Args:
        batches: frames of one size in each.
        work: ``"frame"`` does all three steps; ``"compute"`` prepares every batch beforehand.
        first: index of the batch to begin with, so that threads do not work on the same one.
    """
    if work == "compute":
        inputs = itertools.cycle([network.prepare(batch) for batch in batches])

        def compute_once() -> Timing:
            prepared = next(inputs)
            start = time.perf_counter_ns()
            network.compute(prepared)
            duration_ms = (time.perf_counter_ns() - start) / 1e6
            return Timing(duration_ms, duration_ms)

        return compute_once

    turns = itertools.cycle([*batches[first % len(batches) :], *batches[: first % len(batches)]])

    def frame_once() -> Timing:
        frames = next(turns)
        start = time.perf_counter_ns()
        prepared = network.prepare(frames)
        before = time.perf_counter_ns()
        computed = network.compute(prepared)
        after = time.perf_counter_ns()
        network.finish(computed, frames)
        end = time.perf_counter_ns()
        return Timing((end - start) / 1e6, (after - before) / 1e6)

    return frame_once
