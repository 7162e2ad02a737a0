"""Pass on TensorRT's messages to whoever asked for them and to logging.

TensorRT keeps the first logger that a process gives it and ignores every later one, so there can
be one for each library only. This hub stands behind it and tells listeners apart by thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["Message", "MessageHub", "Severity"]

_LOG = logging.getLogger(__name__)


class Severity(IntEnum):
    """How grave a message is; TensorRT's names and order, the gravest first."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


_LEVELS = {
    Severity.INTERNAL_ERROR: logging.ERROR,
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.INFO: logging.INFO,
    Severity.VERBOSE: logging.DEBUG,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One line of TensorRT's log."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"[{self.severity.name}] {self.text}"


@dataclass(slots=True, eq=False)
class _Capture:
    thread: int
    least: Severity
    messages: list[Message] = field(default_factory=list)


class MessageHub:
    """Hands each message to the captures of the thread that caused it, and to logging.

    Messages from TensorRT's own threads, which belong to no capture, go to all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captures: list[_Capture] = []

    @contextmanager
    def capture(self, least: Severity = Severity.WARNING) -> Iterator[list[Message]]:
        """Collect what this thread makes TensorRT say.

        A message that is captured is logged at debug level only: who captures decides what of it
        is shown.

        Args:
            least: the least grave messages to collect.

        Returns:
            A list that grows while the context is open.
        """
        capture = _Capture(threading.get_ident(), least)
        with self._lock:
            self._captures.append(capture)
        try:
            yield capture.messages
        finally:
            with self._lock:
                self._captures.remove(capture)

    def publish(self, severity: Severity, text: str) -> None:
        """Pass on one message. Called by TensorRT on any thread."""
        message = Message(severity, text)
        with self._lock:
            captures = self._listeners(threading.get_ident(), severity)
            for capture in captures:
                capture.messages.append(message)
        level = logging.DEBUG if captures else _LEVELS[severity]
        _LOG.log(level, "%s", text)

    def _listeners(self, thread: int, severity: Severity) -> list[_Capture]:
        own = [capture for capture in self._captures if capture.thread == thread]
        return [capture for capture in own or self._captures if severity <= capture.least]
