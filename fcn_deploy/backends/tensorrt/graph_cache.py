"""Keep recorded runs (CUDA graphs) by shapes and addresses, the most recent ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from fcn_deploy.backends.tensorrt.device import DeviceBackend

__all__ = ["GraphCache"]

_MOST = 16
"""Each holds a copy of its kernels' arguments on the device; a stream has a size or two."""


class GraphCache:
    """Records runs and replays them; wants the device current.

    A graph holds the addresses that it was recorded with, so they must be part of the key.
    """

    def __init__(self, device: DeviceBackend, *, most: int = _MOST) -> None:
        self._device = device
        self._most = most
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def record(self, key: Hashable, enqueue: Callable[[], None], stream: int) -> None:
        """Record what `enqueue` puts into a stream; nothing runs."""
        self._device.begin_capture(stream)
        try:
            enqueue()
        except BaseException:
            self._device.release(self._device.end_capture(stream))
            raise
        self._graphs[key] = self._device.end_capture(stream)
        while len(self._graphs) > self._most:
            _, oldest = self._graphs.popitem(last=False)
            self._device.release(oldest)  # one that still runs is freed when it is done

    def launch(self, key: Hashable, stream: int) -> None:
        """Enqueue a recorded run."""
        self._graphs.move_to_end(key)
        self._device.launch(self._graphs[key], stream)

    def close(self) -> None:
        """Free all. May be called twice."""
        while self._graphs:
            self._device.release(self._graphs.popitem()[1])
