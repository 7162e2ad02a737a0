"""Build the fake `libcuda.so.1`, and let the simulated TensorRT put its work into its queues."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcn_deploy.backends.tensorrt.head_kernel import head_source
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.simulated_driver import Access

SOURCE = Path(__file__).with_name("fake_libcuda.c")


def build_fake_libcuda(folder: Path, *, extension: Path | None = None) -> Path:
    """Compile it with gcc; gives the folder for LD_LIBRARY_PATH.

    Args:
        extension: a module that is linked to libcuda: functions of the driver that it names and
            the fake lacks are added, and fail.
    """
    missing: set[str] = set()
    if extension is not None:
        text = subprocess.run(
            ["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True
        ).stdout
        names = {line.split()[-1].partition("@")[0] for line in text.splitlines()}
        source = SOURCE.read_text()
        missing = {name for name in names if name.startswith("cu") and f"{name}(" not in source}
    stubs = [f"Result {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in sorted(missing)]
    (folder / "fake_names.h").write_text("".join(stubs))
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-I", folder, SOURCE),
            *("-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", "-ldl", "-lpthread"),
        ],
        check=True,
    )
    return folder


def build_host_kernel(folder: Path) -> Path:
    """Compile the head's kernel for the host with g++; gives the library."""
    source = folder / "head.cpp"
    size = 'extern "C" const unsigned long head_labels_size = sizeof(HeadArguments);'
    source.write_text(f"{head_source()}\n{size}\n")
    library = folder / "head.so"
    subprocess.run(
        [
            *("g++", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-ffp-contract=off"),
            *(source, "-o", library),
        ],
        check=True,
    )
    return library


class CDriver:
    """The fake library as the simulated TensorRT sees it."""

    compute_capability = (8, 6)

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.fake_free_bytes.restype = ctypes.c_size_t
        self._type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._callbacks: list[object] = []  # a graph may call one again at any time
        self.errors: list[BaseException] = []

    @property
    def free_bytes(self) -> int:
        return int(self._library.fake_free_bytes())

    def enqueue(self, handle: int, name: str, run: Callable[[], None], *accesses: Access) -> None:
        def call(_: object) -> None:
            try:
                run()
            except BaseException as error:  # noqa: BLE001 - it must not cross C; the test looks
                self.errors.append(error)

        callback = self._type(call)
        self._callbacks.append(callback)
        status = self._library.fake_enqueue(ctypes.c_void_p(handle), callback, None)
        if status:
            raise AssertionError(f"{name} in a stream that is not there: {handle:#x}")

    def view(self, address: int, num_bytes: int) -> Array:
        if not self._library.fake_is_device_memory(
            ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)
        ):
            raise AssertionError(f"illegal access of {num_bytes} bytes at {address:#x}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def is_capturing(self, handle: int) -> bool:
        status = ctypes.c_int()
        self._library.cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status))
        return bool(status.value)

    @property
    def context_depth(self) -> int:
        return int(self._library.fake_context_depth())

    def leftovers(self) -> dict[str, int]:
        """Count what is alive."""
        found = (ctypes.c_int * 6)()
        self._library.fake_leftovers(found)
        names = ("blocks", "streams", "events", "graphs", "graph execs", "context references")
        return {name: count for name, count in zip(names, found, strict=True) if count}
