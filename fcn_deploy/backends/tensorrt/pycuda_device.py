"""Use the CUDA driver through PyCUDA; CUDA graphs and foreign streams through cuda.bindings.

Never `pycuda.autoinit`: it makes a context of its own, in which PyTorch's, ONNX Runtime's and
TensorRT's pointers and streams mean nothing. All of these use the primary context, as we do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.cuda_python_device import AnyStream
from fcn_deploy.backends.tensorrt.device import (
    OUT_OF_MEMORY_HINT,
    DeviceInfo,
    check_ordinal,
    out_of_memory,
)
from fcn_deploy.errors import BackendUnavailableError, DeviceMemoryError, ExecutionError
from fcn_deploy.names import Array

__all__ = ["PyCudaDevice"]

_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING of cuda.h


class PyCudaDevice(AnyStream):
    """One GPU through PyCUDA, which has no graphs, and takes no streams but its own."""

    name = "pycuda"

    def __init__(self, ordinal: int) -> None:
        self._driver = driver = _require_pycuda()
        with _translated("cuInit", driver):
            driver.init()
            count = driver.Device.count()
        check_ordinal(ordinal, count)
        device = driver.Device(ordinal)
        with _translated("cuDevicePrimaryCtxRetain", driver):
            self._context: Any = device.retain_primary_context()
        self._streams: dict[int, Any] = {}
        self._allocations: dict[int, Any] = {}
        self.has_graphs = find_spec("cuda") is not None and find_spec("cuda.bindings") is not None
        self.info = DeviceInfo(
            ordinal=ordinal,
            name=device.name(),
            compute_capability=device.compute_capability(),
            total_bytes=device.total_memory(),
        )

    @contextmanager
    def current(self) -> Generator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def memory_info(self) -> tuple[int, int]:
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def alloc(self, num_bytes: int) -> int:
        with _translated("cuMemAlloc", self._driver):
            try:
                allocation = self._driver.mem_alloc(num_bytes)
            except self._driver.MemoryError as error:
                raise out_of_memory(num_bytes, *self.memory_info(), what="a buffer") from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._allocations.pop(address).free()

    def pinned(self, num_bytes: int) -> Array:
        with _translated("cuMemHostAlloc", self._driver):
            memory: Array = self._driver.pagelocked_empty(num_bytes, np.uint8)
        return memory

    def free_pinned(self, array: Array) -> None:
        array.base.free()  # type: ignore[union-attr]  # PyCUDA's own holder of the memory

    def upload(self, address: int, source: Array, stream: int) -> None:
        with _translated("cuMemcpyHtoDAsync", self._driver):
            self._driver.memcpy_htod_async(address, source, self._streams[stream])

    def download(self, target: Array, address: int, stream: int) -> None:
        with _translated("cuMemcpyDtoHAsync", self._driver):
            self._driver.memcpy_dtoh_async(target, address, self._streams[stream])

    def stream(self) -> int:
        with _translated("cuStreamCreate", self._driver):
            stream = self._driver.Stream(_STREAM_NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def event(self, *, timing: bool = False) -> Any:
        flags = self._driver.event_flags
        with _translated("cuEventCreate", self._driver):
            return self._driver.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)

    def record(self, event: Any, stream: int) -> None:
        with _translated("cuEventRecord", self._driver):
            event.record(self._streams[stream])

    def wait(self, stream: int, event: Any) -> None:
        with _translated("cuStreamWaitEvent", self._driver):
            self._streams[stream].wait_for_event(event)

    def synchronize(self, event: Any) -> None:
        with _translated("cuEventSynchronize", self._driver):
            event.synchronize()

    def is_done(self, event: Any) -> bool:
        with _translated("cuEventQuery", self._driver):
            return bool(event.query())

    def elapsed_ms(self, start: Any, end: Any) -> float:
        with _translated("cuEventElapsedTime", self._driver):
            return float(end.time_since(start))

    def load_kernel(self, image: bytes, name: str) -> Any:
        with _translated("cuModuleLoadData", self._driver):
            return self._driver.module_from_buffer(image).get_function(name)

    def launch_kernel(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        argument: bytes,
        stream: int,
    ) -> None:
        content = np.frombuffer(argument, np.uint8)  # PyCUDA passes an array's bytes by value
        with _translated("cuLaunchKernel", self._driver):
            kernel(content, grid=grid, block=block, stream=self._streams[stream])

    def release(self, *resources: Any) -> None:
        for resource in resources:
            if isinstance(resource, int):
                del self._streams[resource]  # PyCUDA destroys it with its last reference
            elif not isinstance(resource, self._driver.Event):  # as it does events
                self.destroy_graph(resource)

    def close(self) -> None:
        if self._context is None:
            return
        # PyCUDA's own way out, when the last reference goes, calls cuCtxDetach, which is not for
        # primary contexts; detach() releases it, but leaves it on the driver's stack
        self._context.push()
        self._context.detach()
        self._context = None
        popped = ctypes.c_void_p()
        ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(popped))


@contextmanager
def _translated(function: str, driver: ModuleType) -> Generator[None]:
    try:
        yield
    except driver.Error as error:
        what = f"the CUDA driver failed in {function}: {error}."
        if isinstance(error, driver.MemoryError):
            raise DeviceMemoryError(what, hint=OUT_OF_MEMORY_HINT) from error
        raise ExecutionError(what) from error


def _require_pycuda() -> ModuleType:
    try:
        import pycuda.driver
    except ImportError as error:
        raise BackendUnavailableError(
            f"pycuda cannot be imported: {error}.",
            hint="pip install pycuda (it needs CUDA's headers), or cuda-bindings in its place.",
        ) from error
    module: ModuleType = pycuda.driver
    return module
