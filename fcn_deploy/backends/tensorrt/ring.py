"""Rotate slots, so that copies and execution of successive frames overlap.

Three streams, one each for copies to the GPU, for execution and for copies from it, are joined by
events. A slot has buffers and events of its own; a frame takes the slot that was used longest ago,
after the run that had it was finished and its results were copied out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fcn_deploy.backends.tensorrt.buffers import BufferPool
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.execution import Shapes
from fcn_deploy.backends.tensorrt.slots import Slot
from fcn_deploy.names import Array, TensorSpec

__all__ = ["Ring", "nbytes_of"]


class Ring:
    """Streams, slots and their memory. Every method wants the device's context current.

    Attributes:
        execute: the stream that runs are enqueued to.
    """

    def __init__(self, device: DeviceBackend, *, depth: int, timing: bool) -> None:
        self._device = device
        self._timing = timing
        self._turn = 0
        self._pool = BufferPool(device)
        self._upload, self.execute, self._download = (device.stream() for _ in range(3))
        self._slots = [
            Slot(f"{index}/", *(device.event(timing=timing) for _ in range(5)))
            for index in range(depth)
        ]

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that the slots hold."""
        return self._pool.device_bytes

    def next_slot(self) -> Slot:
        """Take the slot that was used longest ago, after its run."""
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        slot.settle()
        return slot

    def addresses(self, slot: Slot, specs: Sequence[TensorSpec], shapes: Shapes) -> dict[str, int]:
        """Find room for tensors on the device; the slot must be idle."""
        return {
            spec.name: self._pool.on_device(slot.prefix + spec.name, nbytes_of(spec, shapes))
            for spec in specs
        }

    def copy_in(self, slot: Slot, feeds: Mapping[str, Array], addresses: Mapping[str, int]) -> None:
        """Copy arrays of any shape and dtype to the device; what is run next waits for them."""
        filled = {}
        for name, feed in feeds.items():
            pinned = self._pool.pinned(slot.prefix + name, feed.nbytes)
            # copied: the caller may change its array, and the GPU reads page-locked memory faster
            pinned.view(feed.dtype).reshape(feed.shape)[...] = feed
            filled[name] = pinned
        if self._timing:
            self._device.record(slot.begun, self._upload)
        for name, pinned in filled.items():
            self._device.upload(addresses[name], pinned, self._upload)
        self._device.record(slot.uploaded, self._upload)
        self._device.wait(self.execute, slot.uploaded)
        if self._timing:
            self._device.record(slot.started, self.execute)

    def copy_out(
        self,
        slot: Slot,
        specs: Sequence[TensorSpec],
        shapes: Shapes,
        addresses: Mapping[str, int],
    ) -> dict[str, Array]:
        """Copy tensors back, after what was executed; they are there at `slot.downloaded`.

        Returns:
            Arrays by name, of the shapes given and the dtypes of `specs`, in pinned memory.
        """
        self._device.record(slot.executed, self.execute)
        self._device.wait(self._download, slot.executed)
        parts = {}
        for spec in specs:
            pinned = self._pool.pinned(slot.prefix + spec.name, nbytes_of(spec, shapes))
            self._device.download(pinned, addresses[spec.name], self._download)
            parts[spec.name] = pinned.view(spec.dtype).reshape(shapes[spec.name])
        self._device.record(slot.downloaded, self._download)
        return parts

    def drain(self, slot: Slot) -> None:
        """Wait for all that was enqueued; the slot must be idle, its events are used for it."""
        for stream in (self._upload, self.execute, self._download):
            self._device.record(slot.downloaded, stream)
            self._device.synchronize(slot.downloaded)

    def finish(self) -> None:
        """Wait for all runs; wants no context current."""
        for slot in self._slots:
            slot.settle()

    def drain_all(self) -> None:
        """Wait for all that was enqueued, after `finish`."""
        self.drain(self._slots[0])

    def close(self) -> None:
        """Free everything, after `drain_all`."""
        self._pool.close()
        for slot in self._slots:
            self._device.release(*slot.events)
            slot.drop_events()  # PyCUDA destroys them with the last reference
        self._device.release(self._upload, self.execute, self._download)


def nbytes_of(spec: TensorSpec, shapes: Shapes) -> int:
    """Give the bytes of a tensor of this shape."""
    return math.prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize
