"""Hold a run's buffers and events in a slot, and wait for its result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fcn_deploy.backends.base import RunTimes
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_arrays import wrong_out
from fcn_deploy.errors import FcnDeployError, ShapeError
from fcn_deploy.names import Array

__all__ = ["PendingResult", "Slot"]


@dataclass(eq=False)
class Slot:
    """Buffers (by prefix in the pool) and events of one run at a time.

    Attributes:
        begun, started: recorded where runs are timed only.
    """

    prefix: str
    begun: Any
    uploaded: Any
    started: Any
    executed: Any
    downloaded: Any
    pending: PendingResult | None = None

    @property
    def events(self) -> tuple[Any, ...]:
        return self.begun, self.uploaded, self.started, self.executed, self.downloaded

    def settle(self) -> None:
        """Wait for the run that has it, if any, and let its result be copied out."""
        pending = self.pending  # once: a thread that takes the result meanwhile sets it to None
        if pending is not None:
            pending.settle()

    def drop_events(self) -> None:
        """Let go of the events, though results may hold on to the slot."""
        self.begun = self.uploaded = self.started = self.executed = self.downloaded = None


class PendingResult:
    """A run under way. Several threads may ask for its result."""

    def __init__(
        self,
        device: DeviceBackend,
        slot: Slot,
        parts: Mapping[str, Array],
        *,
        timed: bool,
        finish: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
    ) -> None:
        """Hold a run that was enqueued.

        Args:
            parts: page-locked memory that its outputs are copied to.
            finish: makes the result of the outputs, when they are there; may refuse them.
        """
        self._device = device
        self._slot = slot
        self._parts = parts  # page-locked, until the result is copied out of it
        self._timed = timed
        self._finish = finish
        self._lock = threading.Lock()
        self._arrays: dict[str, Array] = {}
        self._times: RunTimes | None = None
        self._error: FcnDeployError | MemoryError | None = None
        self._finished = False

    def done(self) -> bool:
        """Say whether `result` would not wait. Does not wait itself."""
        if not self._lock.acquire(blocking=False):
            return self._finished  # another thread waits for it
        try:
            if self._finished:
                return True
            with self._device.current():
                return self._device.is_done(self._slot.downloaded)
        finally:
            self._lock.release()

    def result(self, *, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Wait for the run and give its outputs, arrays owned by the caller.

        Args:
            out: C-contiguous arrays to write outputs into, by name, of their shape and dtype.

        Raises:
            ExecutionError: the run failed on the GPU.
            NonFiniteOutputError: labels were made on the GPU, of scores with NaN or infinity.
            ShapeError: an array of `out` is of another shape or dtype.
            MemoryError: the host has no room for the outputs.
        """
        self.settle()
        if self._error is not None:
            raise self._error
        targets = out or {}
        return {
            name: array if name not in targets else _copied(name, array, targets[name])
            for name, array in self._arrays.items()
        }

    def times(self) -> RunTimes | None:
        """Wait for the run and give its times by CUDA events; None where none were recorded."""
        self.settle()
        return self._times

    def settle(self) -> None:
        """Wait, copy the outputs out of the slot and let go of it. Keeps an error for `result`.

        What interrupts it, such as Ctrl-C, leaves the run in its slot, to be waited for again.
        """
        with self._lock:
            if self._finished:
                return
            slot, device = self._slot, self._device
            try:
                with device.current():
                    device.synchronize(slot.downloaded)
                    if self._timed:
                        compute_ms = device.elapsed_ms(slot.started, slot.executed)
                        copies_ms = device.elapsed_ms(slot.begun, slot.uploaded)
                        copies_ms += device.elapsed_ms(slot.executed, slot.downloaded)
                        self._times = RunTimes(compute_ms, compute_ms + copies_ms)
                # copied: the slot's memory is overwritten by its next run
                arrays = {name: part.copy() for name, part in self._parts.items()}
                self._arrays = arrays if self._finish is None else self._finish(arrays)
            except (FcnDeployError, MemoryError) as error:
                self._error = error  # this run's: the slot's next run may wait here
            self._parts = {}
            self._finished = True
            slot.pending = None


def _copied(name: str, array: Array, target: Array) -> Array:
    if (target.shape, target.dtype) != (array.shape, array.dtype):
        raise ShapeError(wrong_out(name, target, array.shape, array.dtype))
    target[...] = array
    return target
