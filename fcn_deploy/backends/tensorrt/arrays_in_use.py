"""Track the arrays of a session that callers hold, and callers' arrays that its runs use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_arrays import DeviceArray, DeviceView, view_of, wrong_out
from fcn_deploy.backends.tensorrt.execution import Shapes
from fcn_deploy.backends.tensorrt.ring import nbytes_of
from fcn_deploy.errors import ShapeError
from fcn_deploy.names import TensorSpec

__all__ = ["ArraysInUse", "views_of"]


class ArraysInUse:
    """Keeps arrays as long as they are needed. Every method wants the device's context current.

    Args:
        stream: that all runs are enqueued to.
        free: what closing an array that was given out calls; it comes back to `free`.
    """

    def __init__(
        self, device: DeviceBackend, stream: int, *, free: Callable[[DeviceArray], None]
    ) -> None:
        self._device = device
        self._stream = stream
        self._free = free
        self._kept: deque[tuple[Any, object]] = deque()  # an event, what to hold until then
        self._given_out: set[DeviceArray] = set()

    def outputs(
        self, specs: Sequence[TensorSpec], shapes: Shapes, out: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Find where outputs go: the caller's arrays, or new ones that are given out.

        Returns:
            The arrays and their addresses, by name.

        Raises:
            ShapeError: an array of `out` is of another shape or dtype.
            DeviceMemoryError: the GPU has no room for a new one.
        """
        views = views_of(out, self._device)
        results: dict[str, Any] = {}
        addresses: dict[str, int] = {}
        try:
            for spec in specs:
                shape, dtype = shapes[spec.name], np.dtype(spec.dtype)
                if spec.name in out:
                    view = views[spec.name]
                    if (view.shape, view.dtype) != (shape, dtype):
                        raise ShapeError(wrong_out(spec.name, view, shape, dtype))
                    results[spec.name], addresses[spec.name] = out[spec.name], view.address
                else:
                    address = self._device.alloc(nbytes_of(spec, shapes))
                    array = DeviceArray(address, shape, dtype, self._free)
                    self._given_out.add(array)
                    results[spec.name], addresses[spec.name] = array, address
        except BaseException:
            self.take_back(results, out)
            raise
        return results, addresses

    def take_back(self, results: Mapping[str, Any], out: Mapping[str, Any]) -> None:
        """Free what `outputs` made for a run that failed, after what was begun of it."""
        self._wait()
        for name, array in results.items():
            if name not in out:
                array.close()

    def keep_until_executed(self, what: object) -> None:
        """Hold on to others' arrays until the run that uses them is over."""
        while self._kept and self._device.is_done(self._kept[0][0]):
            self._device.release(self._kept.popleft()[0])
        done = self._device.event()
        self._device.record(done, self._stream)
        self._kept.append((done, what))

    def free(self, array: DeviceArray) -> None:
        """Free an array that was given out, after the run that fills it."""
        if array in self._given_out:
            self._given_out.discard(array)
            self._wait()
            self._device.free(array.address)

    def close(self) -> None:
        """Free what was given out and let go of the rest, when all runs are over."""
        for array in list(self._given_out):
            array.close()
        self._device.release(*(event for event, _ in self._kept))
        self._kept.clear()

    def _wait(self) -> None:
        done = self._device.event()
        self._device.record(done, self._stream)
        self._device.synchronize(done)
        self._device.release(done)


def views_of(arrays: Mapping[str, Any], device: DeviceBackend) -> dict[str, DeviceView]:
    """Read where arrays on this GPU lie; see `view_of`."""
    ordinal = device.info.ordinal
    return {name: view_of(a, name=name, ordinal=ordinal) for name, a in arrays.items()}
