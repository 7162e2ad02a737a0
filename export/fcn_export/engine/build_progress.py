"""Report the progress of a build, and cancel it on a listener's no, an exception or a signal.

TensorRT prints an exception raised in a callback and goes on as if the build had been cancelled;
here the build is cancelled and the exception is raised where the build was asked for.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["BuildMonitor", "BuildProgress", "OnProgress", "signals_deferred"]


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        phase: what TensorRT is doing, in its own words.
        fraction: of all phases that it has told of, 0..1; never falls.
    """

    phase: str
    fraction: float


OnProgress = Callable[[BuildProgress], bool | None]
"""Called at each step of a build, on its thread; False cancels it."""


@dataclass(slots=True)
class _Phase:
    name: str
    num_steps: int
    done: int = 0


class BuildMonitor:
    """Hears TensorRT's phases, which lie inside each other, and tells a listener one fraction."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._stack: list[_Phase] = []
        self._fraction = 0.0
        self.cancelled = False
        self.error: BaseException | None = None

    def cancel(self) -> None:
        """End the build at its next step."""
        self.cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        self._stack.append(_Phase(phase_name, max(1, num_steps)))
        self._tell()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False cancels the build."""
        for phase in self._stack:
            if phase.name == phase_name:
                phase.done = step + 1
        self._tell()
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        self._stack = [phase for phase in self._stack if phase.name != phase_name]

    def _tell(self) -> None:
        share, found = 1.0, 0.0
        for phase in self._stack:
            share /= phase.num_steps
            found += share * phase.done
        self._fraction = max(self._fraction, min(found, 1.0))
        if self._on_progress is None or self.cancelled:
            return
        try:
            answer = self._on_progress(BuildProgress(self._stack[-1].name, self._fraction))
        except BaseException as error:  # noqa: BLE001 - raised again by build_engine
            self.error = error
            answer = False
        if answer is False:
            self.cancelled = True


@contextmanager
def signals_deferred(monitor: BuildMonitor) -> Iterator[None]:
    """Let SIGINT and SIGTERM cancel the build, and take effect once it has ended.

    One that this process ignores, as under nohup, stays ignored. Raised inside one of TensorRT's
    callbacks, KeyboardInterrupt would be printed and lost. Outside the main thread nothing is
    changed: signals are not handled there.
    """
    caught: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        monitor.cancel()

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            previous[number] = signal.signal(number, remember)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
