"""Let threads that begin in an order, and run at once, end in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Numbers what several threads take, and lets each hand over when its number is up."""

    def __init__(self) -> None:
        self._taking = Lock()
        self._changed = Condition()
        self._taken = self._up = 0
        self._over = False

    def take(self, get: Callable[[], T]) -> tuple[int, T]:
        """Take the next thing; one thread at a time waits for it. Gives its number too."""
        with self._taking:
            item = get()
            number, self._taken = self._taken, self._taken + 1
            return number, item

    @contextmanager
    def turn(self, number: int) -> Iterator[bool]:
        """Wait until all before have had their turn; give False where it is all over.

        Each number must be given its turn once, or `end` be called.
        """
        with self._changed:
            while self._up != number and not self._over:
                self._changed.wait()
            over = self._over
        try:
            yield not over
        finally:
            with self._changed:
                self._up += 1
                self._changed.notify_all()

    def end(self) -> None:
        """Give no more turns, and wake all threads that wait for one."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
