"""Keep device and page-locked memory by key; it grows when too small and is reused."""

from __future__ import annotations

from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.errors import DeviceMemoryError
from fcn_deploy.names import Array

__all__ = ["BufferPool"]

_ALIGNMENT = 256
"""Bytes; what cuMemAlloc gives and TensorRT asks of addresses."""

_GROWTH = 1.5
"""A buffer that is too small becomes at least this many times larger: sizes that creep up cost
few allocations, each of which stops the whole GPU."""


class BufferPool:
    """Memory that one session owns. Every method wants the device's context current.

    A buffer that grows moves: whoever asks for a larger one sees to it that nothing in flight
    uses the old one.
    """

    def __init__(self, device: DeviceBackend) -> None:
        self._device = device
        self._on_device: dict[str, tuple[int, int]] = {}  # key -> address, capacity
        self._pinned: dict[str, Array] = {}

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that are held."""
        return sum(capacity for _, capacity in list(self._on_device.values()))

    def on_device(self, key: str, num_bytes: int) -> int:
        """Give the address of device memory of at least this size.

        Raises:
            DeviceMemoryError: there is not so much.
        """
        address, capacity = self._on_device.get(key, (0, 0))
        if num_bytes <= capacity:
            return address
        if capacity:
            del self._on_device[key]
            self._device.free(address)
        exact = _aligned(num_bytes)
        wanted = max(exact, _aligned(int(capacity * _GROWTH)))
        try:
            address = self._device.alloc(wanted)
        except DeviceMemoryError:
            if wanted == exact:
                raise
            wanted = exact
            address = self._device.alloc(wanted)
        self._on_device[key] = (address, wanted)
        return address

    def pinned(self, key: str, num_bytes: int) -> Array:
        """Give page-locked memory, uint8 [num_bytes], valid until a larger one is asked for."""
        held = self._pinned.get(key)
        if held is None or held.nbytes < num_bytes:
            capacity = 0
            if held is not None:
                capacity = held.nbytes
                self._device.free_pinned(self._pinned.pop(key))
            held = self._device.pinned(max(_aligned(num_bytes), _aligned(int(capacity * _GROWTH))))
            self._pinned[key] = held
        return held[:num_bytes]

    def close(self) -> None:
        """Free everything. May be called twice."""
        while self._on_device:
            _, (address, _) = self._on_device.popitem()
            self._device.free(address)
        while self._pinned:
            _, array = self._pinned.popitem()
            self._device.free_pinned(array)


def _aligned(num_bytes: int) -> int:
    return max(1, -(-num_bytes // _ALIGNMENT)) * _ALIGNMENT
