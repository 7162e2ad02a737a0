"""Pass items between two threads by a bounded queue that can end, fail and be closed."""

from __future__ import annotations

import time
from collections import deque
from threading import Condition
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Channel", "ChannelClosedError", "Producing"]

T = TypeVar("T")


class ChannelClosedError(Exception):
    """The other side went away. It never leaves this package."""


class Channel(Generic[T]):
    """Hands items from one producer to one consumer, in order.

    The producer calls `finish` once; the consumer gets what was put before, then the producer's
    error, then None for ever. Either side may `close` at any time: what waits is then discarded.

    Args:
        capacity: items that may wait; a full channel makes the producer wait.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be 1 or more")
        self._capacity = capacity
        self._drop_oldest = False
        self._items: deque[T] = deque()
        self._added = self._discarded = 0
        self._changed = Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    @property
    def taken(self) -> int:
        """How many items the consumer took, also where a signal came before it could count them."""
        with self._changed:
            return self._added - self._discarded - len(self._items)

    def lose_oldest(self, capacity: int) -> None:
        """Switch to losing the oldest item where the producer would wait."""
        with self._changed:
            self._capacity, self._drop_oldest = capacity, True

    def put(self, item: T, *, timeout_s: float | None = None) -> int:
        """Add an item, waiting for room; return how many older ones were dropped for it.

        Raises:
            TimeoutError: there was no room for `timeout_s`; the item was not taken.
            ChannelClosedError: the channel was closed; the item was not taken.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._drop_oldest and len(self._items) >= self._capacity:
                if self._closed:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            if self._closed:
                raise ChannelClosedError
            dropped = 0
            while len(self._items) >= self._capacity:
                self._items.popleft()
                dropped += 1
            self._items.append(item)
            self._added += 1
            self._discarded += dropped
            self._changed.notify_all()
            return dropped

    def get(self, *, timeout_s: float | None = None) -> T | None:
        """Take the oldest item; None when there will be no more.

        Raises:
            TimeoutError: nothing came in `timeout_s`.
            BaseException: whatever the producer finished with, once.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not (self._items or self._finished or self._closed):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def finish(self, error: BaseException | None = None) -> None:
        """End the stream, with an error or without. Only the first call counts."""
        with self._changed:
            if not (self._finished or self._closed):
                self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> int:
        """Discard what waits, wake both sides, and return how many items were discarded."""
        with self._changed:
            discarded = len(self._items)
            self._items.clear()
            self._discarded += discarded
            self._closed, self._error = True, None
            self._changed.notify_all()
            return discarded


class Producing(Generic[T]):
    """`with` around a producing thread's work: however it ends, the channel is told."""

    def __init__(self, channel: Channel[T]) -> None:
        self._channel = channel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._channel.finish(None if isinstance(exc, ChannelClosedError) else exc)
        return True  # a thread's error has no caller: the consumer raises it
