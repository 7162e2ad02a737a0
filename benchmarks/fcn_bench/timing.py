"""Time calls: warm up until they are steady, then run slices of them, on any clock.

Every row runs in a worker process of its own (`fcn_bench.worker`), and the rows take turns
(`fcn_bench.rounds`): while one runs, the others block on a pipe. Each inference library keeps a
pool of threads that spin for a while after a call (OpenMP's in PyTorch, ONNX Runtime's own), so
that several libraries in one process can take the cores from each other even when they are called
in turns. A process each rules that out, and makes the peak memory of a row measurable. PyTorch's
thread pool is left to wait as it does by default, since that is what its users run.

A slice begins, for calls below 100 ms, with one call that is not counted: it finds the caches
filled with another row's network. Longer calls are counted from the first, or a benchmark of slow
networks would take half as long again.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Call",
    "Clock",
    "Scope",
    "Slice",
    "Timing",
    "WarmUp",
    "collector_off",
    "measure_saturated",
    "measure_slice",
    "warm_up",
]

Clock = Callable[[], int]
"""Monotonic time in nanoseconds."""

_WINDOW_SECONDS = 0.05
_STEADY_WINDOWS = 3
_STEADY_WITHIN = 0.10
_SETTLE_BELOW_MS = 100.0


Scope = Literal["compute", "transfer", "frame", "stream"]
"""The network alone; with what is copied to a GPU and from it; from frame to labels; from the
arrival of a frame to its written labels."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One call's durations, in ms.

    Attributes:
        frame_ms: of all that the call did, or from when a frame was due until it was written.
        compute_ms: of the network's part, by the GPU's clock where it ran on one.
        transfer_ms: of that part with the copies; None where nothing is copied.
    """

    frame_ms: float
    compute_ms: float
    transfer_ms: float | None = None

    def of(self, scope: Scope) -> float | None:
        """Give the duration of a scope; None where it has none."""
        if scope in ("frame", "stream"):
            return self.frame_ms
        return self.compute_ms if scope == "compute" else self.transfer_ms


Call = Callable[[], Timing]
"""Do the work once and say how long its parts took."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a warm-up ended.

    Attributes:
        calls: how many were made.
        steady: whether the last windows agreed; None where the number of calls was given.
        first_ms: duration of the first call, which loads and allocates; None without a call.
    """

    calls: int
    steady: bool | None
    first_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Calls of one row in one round.

    Attributes:
        timings: counted calls, in order of completion.
        calls_per_second: completed calls a second, of all threads together.
        unwritten: of a stream, how many of the frames were not written in time; they are the last.
    """

    timings: tuple[Timing, ...]
    calls_per_second: float
    unwritten: int = 0


def warm_up(
    call: Call,
    *,
    calls: int | None = None,
    max_seconds: float = 10.0,
    clock: Clock = time.perf_counter_ns,
) -> WarmUp:
    """Call until three windows of 50 ms or more have medians within 10 % of each other.

    Args:
        calls: make exactly this many calls, steady or not.
        max_seconds: give up then; three windows are made in any case.
    """
    if calls is not None:
        made = [call().frame_ms for _ in range(calls)]
        return WarmUp(calls=calls, steady=None, first_ms=made[0] if made else None)
    first_ms = call().frame_ms  # it allocates, and belongs to no window
    count = 1
    medians: list[float] = []
    end = clock() + int(max_seconds * 1e9)
    while True:
        window: list[float] = []
        window_end = clock() + int(_WINDOW_SECONDS * 1e9)
        while not window or clock() < window_end:
            window.append(call().frame_ms)
        count += len(window)
        medians = [*medians, statistics.median(window)][-_STEADY_WINDOWS:]
        if len(medians) == _STEADY_WINDOWS:
            if max(medians) - min(medians) <= _STEADY_WITHIN * statistics.median(medians):
                return WarmUp(calls=count, steady=True, first_ms=first_ms)
            if clock() >= end:
                return WarmUp(calls=count, steady=False, first_ms=first_ms)


def measure_slice(
    call: Call, *, seconds: float, min_calls: int, clock: Clock = time.perf_counter_ns
) -> Slice:
    """Call for `seconds`, and at least `min_calls` times, with the garbage collector off."""
    with collector_off():
        start = clock()
        first = call()
        timings = [first]
        if first.frame_ms < _SETTLE_BELOW_MS:
            start = clock()
            timings = []
        end = start + int(seconds * 1e9)
        while len(timings) < min_calls or clock() < end:
            timings.append(call())
        return Slice(tuple(timings), len(timings) / ((clock() - start) / 1e9))


def measure_saturated(
    calls: Sequence[Call],
    *,
    seconds: float,
    min_calls: int,
    clock: Clock = time.perf_counter_ns,
) -> Slice:
    """Run one thread for each of `calls`, all at once.

    A thread's rate is taken over whole calls of its own. While calls are below 100 ms, every
    thread works on until the last of them has its samples, so that neither the start nor the end,
    when cores fall idle, is counted. Longer calls end together nearly enough.

    Raises:
        Exception: whatever a call raised; the other threads have ended then.
    """
    threads = [
        _Saturating(call, seconds=seconds, min_calls=min_calls, clock=clock) for call in calls
    ]
    unfinished = threading.Semaphore(0)
    stop = threading.Event()
    with collector_off():
        for thread in threads:
            thread.begin(unfinished, stop)
        for _ in threads:
            unfinished.acquire()
        stop.set()
        for thread in threads:
            thread.join()
    ended = sorted(
        (pair for thread in threads for pair in thread.counted), key=lambda pair: pair[0]
    )
    timings = tuple(timing for _, timing in ended)
    return Slice(timings, sum(thread.rate for thread in threads))


class _Saturating:
    """One thread of a saturated slice."""

    def __init__(self, call: Call, *, seconds: float, min_calls: int, clock: Clock) -> None:
        self.counted: list[tuple[int, Timing]] = []
        self.rate = 0.0
        self._call = call
        self._seconds = seconds
        self._min_calls = min_calls
        self._clock = clock
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin(self, finished: threading.Semaphore, stop: threading.Event) -> None:
        self._thread = threading.Thread(target=self._run, args=(finished, stop), daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _count(self, timing: Timing) -> None:
        self.counted.append((self._clock(), timing))

    def _run(self, finished: threading.Semaphore, stop: threading.Event) -> None:
        slow = False
        try:
            start = self._clock()
            first = self._call()
            slow = first.frame_ms >= _SETTLE_BELOW_MS
            if slow:
                self._count(first)
            else:
                start = self._clock()
            end = start + int(self._seconds * 1e9)
            while len(self.counted) < self._min_calls or self._clock() < end:
                self._count(self._call())
            self.rate = len(self.counted) / ((self._clock() - start) / 1e9)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that joins
            self._error = error
        finally:
            finished.release()
        while not slow and self._error is None and not stop.is_set():
            try:
                self._call()
            except BaseException as error:  # noqa: BLE001  # handed to the thread that joins
                self._error = error


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from running inside; collect once before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
