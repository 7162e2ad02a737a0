"""Define the protocol between the TensorRT runtime and a CUDA driver library.

Streams are the driver's own handles, as integers, so that TensorRT and other libraries take them
as they are. Every method but `current`, `close` and the properties wants the context current.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from fcn_deploy.errors import BackendUnavailableError, DeviceMemoryError, ExecutionError
from fcn_deploy.names import Array

__all__ = [
    "OUT_OF_MEMORY_HINT",
    "DeviceBackend",
    "DeviceInfo",
    "check_ordinal",
    "device_problem",
    "driver_loads",
    "open_device",
    "out_of_memory",
    "require_device",
]

OUT_OF_MEMORY_HINT = "Use smaller frames or batches, or end what else uses the GPU."

# in the order of preference where the user leaves the choice to us
_FACTORIES = {
    "pycuda": ("fcn_deploy.backends.tensorrt.pycuda_device", "PyCudaDevice", "pycuda.driver"),
    "cuda-python": (
        "fcn_deploy.backends.tensorrt.cuda_python_device",
        "CudaPythonDevice",
        "cuda.bindings",
    ),
}


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A GPU.

    Attributes:
        ordinal: its number in this process, from 0.
        compute_capability: (major, minor), such as (8, 6).
        total_bytes: of its memory.
    """

    ordinal: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int

    def __str__(self) -> str:
        major, minor = self.compute_capability
        gib = self.total_bytes / (1 << 30)
        return f"{self.name} (compute capability {major}.{minor}, {gib:.1f} GiB)"


class DeviceBackend(Protocol):
    """One GPU by way of one driver library. Its methods may be called from several threads."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def has_graphs(self) -> bool:
        """Whether `begin_capture`, `end_capture` and `launch` can be used."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU's primary context current to this thread; what was so before comes back."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Give free and total bytes of the GPU's memory."""
        ...

    def alloc(self, num_bytes: int) -> int:
        """Give the address of new device memory, aligned to 256 bytes.

        Raises:
            DeviceMemoryError: there is not so much.
        """
        ...

    def free(self, address: int) -> None: ...

    def pinned(self, num_bytes: int) -> Array:
        """Give page-locked host memory, uint8 [num_bytes], until `free_pinned`."""
        ...

    def free_pinned(self, array: Array) -> None:
        """Free what `pinned` gave, uint8 [num_bytes]."""
        ...

    def upload(self, address: int, source: Array, stream: int) -> None:
        """Enqueue a copy to the device of a contiguous array of any shape and dtype.

        `source` must stay as it is until the copy was made.
        """
        ...

    def download(self, target: Array, address: int, stream: int) -> None:
        """Enqueue a copy to the host, into a contiguous array of any shape and dtype.

        `target` means nothing until the copy was made.
        """
        ...

    def stream(self) -> int:
        """Make a stream that runs beside all others, the default one too."""
        ...

    def event(self, *, timing: bool = False) -> Any: ...

    def record(self, event: Any, stream: int) -> None:
        """Mark the place in one of our streams that `wait` and `synchronize` then mean."""
        ...

    def wait(self, stream: int, event: Any) -> None:
        """Let what is enqueued to a stream from now on wait for an event's mark."""
        ...

    def order(self, before: int, after: int) -> None:
        """Let a stream wait for all that is in another now; both may be other libraries'."""
        ...

    def synchronize(self, event: Any) -> None:
        """Wait until an event's mark was reached; other Python threads run meanwhile.

        Raises:
            ExecutionError: work before it failed.
        """
        ...

    def is_done(self, event: Any) -> bool: ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Give the time between two events with timing that were reached."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Record what this thread enqueues to a stream from now on, instead of running it."""
        ...

    def end_capture(self, stream: int) -> Any:
        """Give what was recorded, as a graph that `launch` takes."""
        ...

    def launch(self, graph: Any, stream: int) -> None: ...

    def load_kernel(self, image: bytes, name: str) -> Any:
        """Load a kernel of a module, machine code or PTX; it goes with its last reference."""
        ...

    def launch_kernel(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        argument: bytes,
        stream: int,
    ) -> None:
        """Enqueue a kernel that takes one struct by value, given as its bytes."""
        ...

    def release(self, *resources: Any) -> None:
        """Free streams (by handle), events and graphs."""
        ...

    def close(self) -> None:
        """Let go of the primary context, after everything else. May be called twice."""
        ...


def device_problem(name: str | None = None) -> str | None:
    """Say what keeps CUDA from being used here, in a phrase; None where nothing.

    Only looks whether things are there: opens no device.
    """
    if not driver_loads():
        return "the NVIDIA driver (libcuda.so.1) is not installed"
    names = tuple(_FACTORIES) if name is None else (name,)
    if not any(_installed(_FACTORIES[each][2]) for each in names):
        return f"no CUDA driver library for Python ({' or '.join(names)}) is installed"
    return None


def driver_loads() -> bool:
    """Say whether NVIDIA's driver can be loaded here. Loads it, and opens no device."""
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def require_device(name: str | None = None, *, what: str) -> None:
    """Look whether CUDA can be used here, as `device_problem` does.

    Args:
        what: wants it, for the message.

    Raises:
        BackendUnavailableError: it cannot.
    """
    problem = device_problem(name)
    if problem is None:
        return
    hint = "A plan runs where an NVIDIA GPU and its driver are; a CPU runs the artifact's graphs."
    if driver_loads():
        hint = "pip install cuda-bindings, or pycuda, which needs CUDA's headers."
    raise BackendUnavailableError(f"{what} cannot run here: {problem}.", hint=hint)


def open_device(name: str = "auto", *, ordinal: int = 0) -> DeviceBackend:
    """Open a GPU.

    Args:
        name: ``"pycuda"``, ``"cuda-python"``, or ``"auto"`` for the first that is installed.
        ordinal: the GPU's number, from 0.

    Raises:
        BackendUnavailableError: the library, the driver or the GPU is missing.
        ValueError: there is no library of this name.
    """
    if name != "auto" and name not in _FACTORIES:
        raise ValueError(f"device library is {name!r}; expected auto, {', '.join(_FACTORIES)}")
    require_device(None if name == "auto" else name, what="TensorRT")
    if name == "auto":
        name = next(each for each, (_, _, module) in _FACTORIES.items() if _installed(module))
    module, factory, _ = _FACTORIES[name]
    try:
        return cast("DeviceBackend", getattr(import_module(module), factory)(ordinal))
    except ExecutionError as error:  # no GPU, one that is full or taken, another driver's library
        raise BackendUnavailableError(
            f"TensorRT cannot run here: {error.message}",
            hint="Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
        ) from error


def check_ordinal(ordinal: int, count: int) -> None:
    """Refuse a GPU's number that is none of the driver's.

    Raises:
        BackendUnavailableError: there is no such GPU.
    """
    if not 0 <= ordinal < count:
        raise BackendUnavailableError(
            f"there is no GPU {ordinal}: the driver sees {count}.",
            hint="Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
        )


def out_of_memory(needed: int, free: int, total: int, *, what: str) -> DeviceMemoryError:
    """Make the error for memory that a GPU does not have."""
    mib = 1 << 20
    return DeviceMemoryError(
        f"the GPU has no room for {what}: {needed / mib:.1f} MiB are needed, "
        f"{free / mib:.1f} of {total / mib:.1f} MiB are free.",
        hint=OUT_OF_MEMORY_HINT,
    )


def _installed(module: str) -> bool:
    """Look for a module without importing it; importing a parent package may be needed."""
    top = module.partition(".")[0]
    return find_spec(top) is not None and find_spec(module) is not None
