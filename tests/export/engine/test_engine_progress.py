"""Progress is one rising number, whatever phases TensorRT tells of; signals wait for the build."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fcn_export.engine.build_progress import BuildMonitor, BuildProgress, signals_deferred


def test_inner_phases_fill_the_outer_phases_step() -> None:
    heard: list[BuildProgress] = []
    monitor = BuildMonitor(heard.append)

    monitor.phase_start("outer", None, 2)
    monitor.phase_start("inner", "outer", 4)
    monitor.step_complete("inner", 0)
    monitor.step_complete("inner", 3)
    monitor.phase_finish("inner")
    monitor.step_complete("outer", 0)
    monitor.step_complete("outer", 1)

    assert [(p.phase, p.fraction) for p in heard] == [
        ("outer", 0.0),
        ("inner", 0.0),
        ("inner", 0.125),
        ("inner", 0.5),
        ("outer", 0.5),
        ("outer", 1.0),
    ]


def test_fraction_never_falls_when_a_phase_comes_again() -> None:
    heard: list[BuildProgress] = []
    monitor = BuildMonitor(heard.append)

    monitor.phase_start("outer", None, 2)
    for _ in range(2):
        monitor.phase_start("inner", "outer", 2)
        monitor.step_complete("inner", 1)
        monitor.phase_finish("inner")

    fractions = [progress.fraction for progress in heard]
    assert fractions == sorted(fractions)


def test_phase_without_steps_is_no_division_by_zero() -> None:
    monitor = BuildMonitor(None)

    monitor.phase_start("empty", None, 0)

    assert monitor.step_complete("empty", 0)


def test_listener_hears_nothing_after_it_cancelled() -> None:
    heard: list[BuildProgress] = []

    def refuse(progress: BuildProgress) -> bool:
        heard.append(progress)
        return False

    monitor = BuildMonitor(refuse)
    monitor.phase_start("outer", None, 2)

    assert monitor.step_complete("outer", 0) is False
    assert len(heard) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_the_end_and_cancels(number: signal.Signals) -> None:
    monitor = BuildMonitor(None)
    order: list[str] = []
    before = signal.signal(number, lambda signum, frame: order.append("handler"))
    try:
        with signals_deferred(monitor):
            os.kill(os.getpid(), number)
            order.append("build goes on")
            assert monitor.cancelled
    finally:
        signal.signal(number, before)

    assert order == ["build goes on", "handler"]


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with signals_deferred(BuildMonitor(None)):
                pass
        except BaseException as error:  # noqa: BLE001 - a thread's exception must reach the test
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)

    assert failures == []
    assert signal.getsignal(signal.SIGINT) is before
