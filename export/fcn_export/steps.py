"""Time the steps of an export, and tell a listener of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

__all__ = ["OnStep", "StepEvent", "Steps"]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One event of an export's progress, for its listener.

    Attributes:
        step: such as ``"verify"``.
        state: ``"running"`` may come several times, with another detail.
        seconds: since the step began.
    """

    step: str
    state: Literal["running", "done"]
    detail: str
    seconds: float


OnStep = Callable[[StepEvent], None]


class Steps:
    """Times the steps of an export and tells a listener."""

    def __init__(self, on_step: OnStep | None = None) -> None:
        self._on_step = on_step or (lambda event: None)
        self._began = 0.0
        self._step = ""
        self._detail = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; its last detail is what it ends with."""
        self._step, self._detail, self._began = name, "", time.monotonic()
        self.tell("")
        yield
        passed = time.monotonic() - self._began
        self.seconds[name] = round(passed, 3)
        self._on_step(StepEvent(name, "done", self._detail, passed))

    def tell(self, detail: str) -> None:
        """Say what the current step is doing, or has done."""
        self._detail = detail
        passed = time.monotonic() - self._began
        self._on_step(StepEvent(self._step, "running", detail, passed))
