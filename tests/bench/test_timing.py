"""Warm-up and slices, on a clock that only the calls move."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from fcn_bench.timing import Timing, measure_saturated, measure_slice, warm_up


class FakeWork:
    """Calls that take the durations given, in milliseconds, on a clock of their own."""

    def __init__(self, durations_ms: Iterator[float]) -> None:
        self._durations = durations_ms
        self._now_ns = 0
        self.calls = 0

    def clock(self) -> int:
        return self._now_ns

    def __call__(self) -> Timing:
        duration = next(self._durations)
        self._now_ns += int(duration * 1e6)
        self.calls += 1
        return Timing(duration, duration / 2)


def test_warm_up_ends_when_three_windows_agree() -> None:
    work = FakeWork(chain([900.0, 500.0, 300.0, 200.0], repeat(100.0)))

    ended = warm_up(work, clock=work.clock)

    assert ended.steady is True
    assert ended.first_ms == 900
    assert ended.calls == 7  # the first belongs to no window, 500, 300, 200, and three of 100


def test_warm_up_of_fast_calls_fills_windows_of_50_ms() -> None:
    work = FakeWork(repeat(1.0))

    assert warm_up(work, clock=work.clock).calls == 151


def test_warm_up_that_never_settles_says_so() -> None:
    work = FakeWork(chain.from_iterable(repeat((100.0, 300.0, 200.0))))

    ended = warm_up(work, max_seconds=5, clock=work.clock)

    assert ended.steady is False
    assert work.clock() < 7e9


def test_warm_up_of_given_length_makes_just_these_calls() -> None:
    work = FakeWork(repeat(10.0))

    ended = warm_up(work, calls=4, clock=work.clock)

    assert (ended.calls, ended.steady, work.calls) == (4, None, 4)
    assert ended.first_ms == 10
    assert warm_up(work, calls=0).first_ms is None


def test_slice_does_not_count_its_first_short_call() -> None:
    work = FakeWork(chain([90.0], repeat(10.0)))

    part = measure_slice(work, seconds=0.1, min_calls=2, clock=work.clock)

    assert [timing.frame_ms for timing in part.timings] == [10.0] * 10
    assert part.calls_per_second == pytest.approx(100)


def test_slice_counts_long_calls_from_the_first() -> None:
    work = FakeWork(repeat(1000.0))

    part = measure_slice(work, seconds=0.1, min_calls=2, clock=work.clock)

    assert len(part.timings) == work.calls == 2
    assert part.timings[0].compute_ms == 500.0


def test_collector_is_off_in_a_slice_and_on_after_it() -> None:
    seen: list[bool] = []

    def call() -> Timing:
        seen.append(gc.isenabled())
        return Timing(200.0, 200.0)

    measure_slice(call, seconds=0, min_calls=2)

    assert seen == [False, False]
    assert gc.isenabled()


def test_saturated_threads_work_at_once_and_each_has_its_samples() -> None:
    together = threading.Barrier(2)  # passed only by two calls at the same time

    def call() -> Timing:
        # a thread that is done makes one more call, in which the other may not meet it
        try:
            together.wait(timeout=0.5)
        except threading.BrokenBarrierError:
            return Timing(1.0, 1.0)
        return Timing(1.0, 1.0)

    part = measure_saturated([call, call], seconds=0, min_calls=5)

    assert len(part.timings) == 10
    assert part.calls_per_second > 0


def test_saturated_slow_calls_are_counted_from_the_first_and_none_is_made_beyond() -> None:
    made: list[int] = []

    def call() -> Timing:
        made.append(1)
        return Timing(150.0, 150.0)

    part = measure_saturated([call, call], seconds=0, min_calls=2)

    assert len(part.timings) == len(made) == 4


def test_saturated_run_hands_on_what_a_thread_raised() -> None:
    def good() -> Timing:
        return Timing(1.0, 1.0)

    def bad() -> Timing:
        raise ArithmeticError("no such frame")

    with pytest.raises(ArithmeticError, match="no such frame"):
        measure_saturated([good, bad], seconds=0, min_calls=3)

    assert gc.isenabled()
