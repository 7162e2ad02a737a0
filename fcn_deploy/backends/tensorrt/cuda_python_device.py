"""Use the CUDA driver through NVIDIA's cuda.bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.device import (
    OUT_OF_MEMORY_HINT,
    DeviceInfo,
    check_ordinal,
    out_of_memory,
)
from fcn_deploy.errors import BackendUnavailableError, DeviceMemoryError, ExecutionError
from fcn_deploy.names import Array

__all__ = ["AnyStream", "CudaPythonDevice", "call", "require_driver"]

# values of cuda.h
_STREAM_NON_BLOCKING = 1
_EVENT_DEFAULT = 0
_EVENT_DISABLE_TIMING = 2
_OUT_OF_MEMORY = 2
_NOT_READY = 600
# an uncorrectable memory error, a fault of a kernel's, and unknown: every later call fails, too
_LOST = {214, 700, 702, 710, *range(714, 720), 999}


class AnyStream:
    """Stream operations of a device, on streams of any library, given by their handles."""

    def begin_capture(self, stream: int) -> None:
        # THREAD_LOCAL: other threads may call what a capture forbids, such as cuMemAlloc
        mode = require_driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = call("cuStreamEndCapture", stream)
        try:
            return call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        call("cuGraphExecDestroy", graph)

    def order(self, before: int, after: int) -> None:
        event = call("cuEventCreate", _EVENT_DISABLE_TIMING)
        try:
            call("cuEventRecord", event, before)
            call("cuStreamWaitEvent", after, event, 0)
        finally:
            call("cuEventDestroy", event)  # the driver keeps it until the wait is over


class CudaPythonDevice(AnyStream):
    """One GPU through cuda.bindings, with CUDA graphs."""

    name = "cuda-python"
    has_graphs = True

    def __init__(self, ordinal: int) -> None:
        self._driver = require_driver()
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
        check_ordinal(ordinal, count)
        self._device = call("cuDeviceGet", ordinal)
        self._context: Any = call("cuDevicePrimaryCtxRetain", self._device)
        attribute = self._driver.CUdevice_attribute
        major = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        self.info = DeviceInfo(
            ordinal=ordinal,
            name=call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode(),
            compute_capability=(
                call("cuDeviceGetAttribute", major, self._device),
                call("cuDeviceGetAttribute", minor, self._device),
            ),
            total_bytes=call("cuDeviceTotalMem", self._device),
        )

    @contextmanager
    def current(self) -> Generator[None]:
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def memory_info(self) -> tuple[int, int]:
        free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def alloc(self, num_bytes: int) -> int:
        status, address = self._driver.cuMemAlloc(num_bytes)
        if status == _OUT_OF_MEMORY:
            raise out_of_memory(num_bytes, *self.memory_info(), what="a buffer")
        _check("cuMemAlloc", status)
        return int(address)

    def free(self, address: int) -> None:
        call("cuMemFree", address)

    def pinned(self, num_bytes: int) -> Array:
        address = int(call("cuMemHostAlloc", num_bytes, 0))
        memory = (ctypes.c_uint8 * num_bytes).from_address(address)
        return np.ctypeslib.as_array(memory)

    def free_pinned(self, array: Array) -> None:
        call("cuMemFreeHost", array.ctypes.data)

    def upload(self, address: int, source: Array, stream: int) -> None:
        call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Array, address: int, stream: int) -> None:
        call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def stream(self) -> int:
        return int(call("cuStreamCreate", _STREAM_NON_BLOCKING))

    def event(self, *, timing: bool = False) -> Any:
        return call("cuEventCreate", _EVENT_DEFAULT if timing else _EVENT_DISABLE_TIMING)

    def record(self, event: Any, stream: int) -> None:
        call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: Any) -> None:
        call("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: Any) -> None:
        call("cuEventSynchronize", event)

    def is_done(self, event: Any) -> bool:
        (status,) = self._driver.cuEventQuery(event)
        if status == _NOT_READY:
            return False
        _check("cuEventQuery", status)
        return True

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(call("cuEventElapsedTime", start, end))

    def load_kernel(self, image: bytes, name: str) -> Any:
        module = call("cuModuleLoadData", image)
        # the driver unloads the module with the context: one of a few kilobytes
        return call("cuModuleGetFunction", module, name.encode())

    def launch_kernel(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        argument: bytes,
        stream: int,
    ) -> None:
        content = ctypes.create_string_buffer(argument, len(argument))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(content))
        where = ctypes.addressof(pointers)  # the driver copies the arguments there
        call("cuLaunchKernel", kernel, *grid, *block, 0, stream, where, 0)

    def release(self, *resources: Any) -> None:
        for resource in resources:
            if isinstance(resource, int):
                call("cuStreamDestroy", resource)
            elif isinstance(resource, self._driver.CUevent):
                call("cuEventDestroy", resource)
            else:
                self.destroy_graph(resource)

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            call("cuDevicePrimaryCtxRelease", self._device)


def call(function: str, *arguments: Any) -> Any:
    """Call the driver; give its result, or a tuple where there are several.

    Raises:
        DeviceMemoryError: the GPU, or the host where the call is about its memory, has no room.
        ExecutionError: it returned another error.
    """
    status, *results = getattr(require_driver(), function)(*arguments)
    _check(function, status)
    if len(results) == 1:
        return results[0]
    return tuple(results) or None


def require_driver() -> ModuleType:
    """Import cuda.bindings' driver module.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailableError(
            f"cuda.bindings cannot be imported: {error}.", hint="pip install cuda-bindings"
        ) from error
    module: ModuleType = driver
    return module


def _check(function: str, status: Any) -> None:
    code = int(status)
    if code == 0:
        return
    what = f"the CUDA driver failed in {function}: {getattr(status, 'name', code)} ({code})."
    if code == _OUT_OF_MEMORY:
        raise DeviceMemoryError(what, hint=OUT_OF_MEMORY_HINT)
    lost = "After a failed run the context is lost: start the process again."
    raise ExecutionError(what, hint=lost if code in _LOST else None)
