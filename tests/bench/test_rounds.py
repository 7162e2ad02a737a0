"""Who runs when: rows take turns, and rounds are added while a row is not steady."""

from __future__ import annotations

from collections import Counter

import pytest

from fcn_bench.rounds import (
    Interrupted,
    Schedule,
    Series,
    TimingTask,
    Workload,
    interleave,
    turn_order,
)
from fcn_bench.timing import Slice, Timing, WarmUp


class FakeRunner:
    """Writes down that it ran; its calls take a time that it is given."""

    def __init__(self, name: str, log: list[str], *, slower_by_ms: float = 0.0) -> None:
        self._name = name
        self._log = log
        self._slower_by_ms = slower_by_ms
        self._next_ms = 10.0
        self.interrupt_at: int | None = None
        self.measured = 0
        self.warmed: list[int | None] = []

    def warm_up(self, workload: Workload, *, calls: int | None) -> WarmUp:
        self._log.append(f"warm {self._name}")
        self.warmed.append(calls)
        return WarmUp(calls or 5, None if calls else True)

    def measure(self, workload: Workload, *, seconds: float, min_calls: int) -> Slice:
        if self.measured == self.interrupt_at:
            raise KeyboardInterrupt
        self.measured += 1
        self._log.append(self._name)
        self._next_ms += self._slower_by_ms
        return Slice((Timing(self._next_ms, self._next_ms / 2),) * min_calls, 100.0)


def run(runners: dict[str, FakeRunner], schedule: Schedule) -> list[Series]:
    tasks = [TimingTask(name, runner, "frame") for name, runner in runners.items()]
    return interleave(tasks, schedule, foreign_cpu=lambda: None)


def test_every_row_runs_once_a_round_and_in_changing_order() -> None:
    log: list[str] = []
    run({name: FakeRunner(name, log) for name in "abcd"}, Schedule(rounds=8))

    warm, turns = log[:4], log[4:]
    rounds = [turns[i : i + 4] for i in range(0, len(turns), 4)]
    assert warm == ["warm a", "warm b", "warm c", "warm d"]
    assert all(sorted(part) == list("abcd") for part in rounds)
    for place in range(4):
        # nobody is always first, or always after the same one
        assert Counter(part[place] for part in rounds) == {"a": 2, "b": 2, "c": 2, "d": 2}
    assert len({tuple(part) for part in rounds}) >= 4


def test_order_turns_around_in_every_other_round() -> None:
    assert turn_order(3, 0) == [0, 1, 2]
    assert turn_order(3, 1) == [2, 1, 0]
    assert turn_order(3, 2) == [1, 2, 0]
    assert turn_order(1, 5) == [0]


def test_steady_rows_end_after_ten_rounds() -> None:
    log: list[str] = []

    series = run({name: FakeRunner(name, log) for name in "ab"}, Schedule())

    assert [len(part.slices) for part in series] == [10, 10]


def test_drifting_row_gets_five_more_rounds_and_the_others_with_it() -> None:
    log: list[str] = []
    runners = {"a": FakeRunner("a", log), "b": FakeRunner("b", log, slower_by_ms=1.0)}

    series = run(runners, Schedule())

    assert [len(part.slices) for part in series] == [15, 15]


def test_given_rounds_are_kept_whatever_the_rows_do() -> None:
    log: list[str] = []

    series = run({"a": FakeRunner("a", log, slower_by_ms=1.0)}, Schedule(rounds=3))

    assert len(series[0].slices) == 3


def test_slices_share_the_duration_out() -> None:
    assert Schedule().slice_seconds == pytest.approx(0.5)
    assert Schedule(rounds=4, min_duration_seconds=2).slice_seconds == pytest.approx(0.5)


def test_no_rounds_are_added_when_much_time_has_passed() -> None:
    tasks = [TimingTask("a", FakeRunner("a", [], slower_by_ms=1.0), "frame")]
    hours = iter(range(100))

    series = interleave(
        tasks, Schedule(), foreign_cpu=lambda: None, clock=lambda: 3600.0 * next(hours)
    )

    assert len(series[0].slices) == 10


def test_runner_that_is_warm_makes_one_call_of_its_other_work() -> None:
    log: list[str] = []
    runner = FakeRunner("a", log)
    tasks = [TimingTask("a", runner, "compute"), TimingTask("a", runner, "frame")]

    series = interleave(tasks, Schedule(rounds=1), foreign_cpu=lambda: None)

    assert runner.warmed == [None, 1]
    assert series[0].warm == series[1].warm


def test_interrupt_leaves_the_rounds_that_all_rows_completed() -> None:
    log: list[str] = []
    runners = {name: FakeRunner(name, log) for name in "ab"}
    runners["b"].interrupt_at = 3

    with pytest.raises(Interrupted) as caught:
        run(runners, Schedule())

    assert [len(part.slices) for part in caught.value.series] == [3, 3]


def test_foreign_load_is_asked_for_around_each_slice() -> None:
    answers = iter([None, 0.25, 0.9, 0.5])
    tasks = [TimingTask("a", FakeRunner("a", []), "frame")]

    series = interleave(tasks, Schedule(rounds=2), foreign_cpu=lambda: next(answers))

    assert series[0].foreign_cpu == [0.25, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"min_duration_seconds": float("nan")}, "min_duration is nan"),
        ({"warmup_calls": -1}, "warmup is -1"),
    ],
)
def test_plan_refuses_what_cannot_be(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)  # type: ignore[arg-type]  # the wrong values are the point
