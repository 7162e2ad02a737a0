"""Label low-resolution scores that lie on the GPU, without an engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.backends.tensorrt.buffers import BufferPool
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_arrays import view_of
from fcn_deploy.backends.tensorrt.head_kernel import (
    TAINTED,
    HeadKernel,
    check_tainted,
    head_tables,
    label_dtype,
)
from fcn_deploy.errors import ShapeError
from fcn_deploy.names import Array

__all__ = ["DeviceHead"]


class DeviceHead(ContextManaged):
    """Labels scores on the GPU, one call at a time, in a stream of its own."""

    def __init__(self, device: DeviceBackend, *, image: bytes | None = None) -> None:
        """Load the kernel; see `HeadKernel`.

        Raises:
            BackendUnavailableError: NVIDIA's compiler for that is not installed.
        """
        super().__init__()
        self._device = device
        with device.current():
            self._kernel = HeadKernel(device, image=image)
            self._pool = BufferPool(device)
            self._stream = device.stream()
            self._done = device.event()

    def labels(
        self,
        scores: Any,
        size: tuple[int, int],
        *,
        stream: int = 0,
        align_corners: bool = False,
        threshold: float = 0.0,
    ) -> Array:
        """Give the labels that `upsample_argmax` gives, but for scores that differ by rounding.

        Args:
            scores: float32 [N, C, h, w] with ``__cuda_array_interface__``, C-contiguous.
            size: (height, width) of the labels in px.
            stream: that fills the scores.
            align_corners, threshold: as for `upsample_argmax`.

        Returns:
            uint8 (uint16 above 256 classes) [N, height, width] in host memory, owned by the caller.

        Raises:
            NonFiniteOutputError: a score that was needed is NaN or infinite.
            ShapeError: the scores are of another kind.
        """
        self._require_usable("the head on the GPU")
        view = view_of(scores, name="scores", ordinal=self._device.info.ordinal)
        if len(view.shape) != 4 or view.dtype != np.float32 or 0 in view.shape:
            raise ShapeError(
                f"scores are {view.dtype} {list(view.shape)}; expected float32 [N, C, h, w]."
            )
        shape = (view.shape[0], *size)
        dtype = label_dtype(view.shape[1])
        num_bytes = math.prod(shape) * dtype.itemsize
        content = head_tables(view.shape[2:], size, align_corners=align_corners)
        with self._device.current():
            pinned = self._pool.pinned("tables", content.nbytes)
            pinned[:] = content
            tables = self._pool.on_device("tables", content.nbytes)
            labels = self._pool.on_device("labels", num_bytes)
            self._device.upload(tables, pinned, self._stream)
            self._device.order(stream, self._stream)
            self._kernel.enqueue(
                view.address,
                view.shape,
                size,
                tables=tables,
                labels=labels,
                threshold=threshold,
                stream=self._stream,
            )
            found = self._pool.pinned("labels", num_bytes)
            tainted = self._pool.pinned("tainted", TAINTED.nbytes)
            self._device.download(found, labels, self._stream)
            self._device.download(tainted, tables, self._stream)
            self._device.record(self._done, self._stream)
            self._device.synchronize(self._done)
            check_tainted(tainted.view(np.int32))
            # copied: the next call overwrites it
            return found.view(dtype).reshape(shape).copy()

    def close(self) -> None:
        """Free everything. May be called twice."""
        if not self._closed:
            super().close()
            with self._device.current():
                self._pool.close()
                self._device.release(self._done, self._stream)
                self._kernel.close()
                self._done = None
