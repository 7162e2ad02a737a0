"""Compile the CUDA kernel that labels low-resolution scores, make its tables, and enqueue it.

An alternative to Resize and ArgMax in the plan: the upsampled scores, classes times as large as
the labels, are never written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.resources import files
from types import ModuleType
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.errors import BackendUnavailableError, ExecutionError, NonFiniteOutputError
from fcn_deploy.head.geometry import make_axis
from fcn_deploy.names import Array

__all__ = [
    "BLOCK",
    "TAINTED",
    "HeadArguments",
    "HeadKernel",
    "check_tainted",
    "compile_head",
    "head_source",
    "head_tables",
    "label_dtype",
]

BLOCK = (32, 8, 1)
"""Threads of a block: a row of 32 reads neighbouring scores and writes neighbouring labels."""

TAINTED = np.zeros(1, np.int32)
"""The mark that the kernel sets where it meets a score that is NaN or infinite, not set."""

_INSTALL_NVRTC = "pip install 'cuda-bindings>=13,<14' 'nvidia-cuda-nvrtc>=13,<14'"

_POINTERS = (
    *("scores", "row_cells", "row_near", "row_far", "column_cells", "column_near", "column_far"),
    *("labels", "tainted"),
)
_TABLES = ("tainted", *_POINTERS[1:7])
_SIZES = ("images", "classes", "height", "width", "out_height", "out_width")


class HeadArguments(ctypes.Structure):
    """The struct of the same name in head.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _SIZES),
        ("threshold", ctypes.c_float),
        ("wide", ctypes.c_int),
    )


class HeadKernel:
    """The kernel on one GPU. Every method wants the device's context current."""

    def __init__(self, device: DeviceBackend, *, image: bytes | None = None) -> None:
        """Load it.

        Args:
            image: machine code for this GPU; None compiles it, which takes about a second.

        Raises:
            BackendUnavailableError: NVIDIA's compiler for that is not installed, or the driver does
                not take what it makes.
        """
        self._device = device
        major, minor = device.info.compute_capability
        code = compile_head(f"sm_{major}{minor}") if image is None else image
        try:
            self._kernel: Any = device.load_kernel(code, "head_labels")
        except ExecutionError as error:
            raise BackendUnavailableError(
                f"the head's kernel for compute capability {major}.{minor} cannot be loaded: "
                f"{error.message}",
                hint="NVRTC may be of a later CUDA than the driver: nvidia-smi says which CUDA the "
                "driver has; pip install an nvidia-cuda-nvrtc of that release.",
            ) from error

    def enqueue(
        self,
        scores: int,
        shape: Sequence[int],
        size: tuple[int, int],
        *,
        tables: int,
        labels: int,
        threshold: float,
        stream: int,
    ) -> None:
        """Enqueue the labelling of scores.

        Args:
            scores, tables, labels: addresses: float32 [N, C, h, w], what `head_tables` gives, and
                room for `label_dtype` [N, height, width].
            shape: of the scores.
            size: (height, width) of the labels in px.
            threshold: of a single class's score, above which the label is 1.
        """
        arguments = HeadArguments(scores=scores, labels=labels, threshold=threshold)
        for name, value in zip(_SIZES, (*shape, *size), strict=True):
            setattr(arguments, name, value)
        for name, offset in zip(_TABLES, _table_offsets(size), strict=True):
            setattr(arguments, name, tables + offset)
        arguments.wide = label_dtype(shape[1]).itemsize - 1
        grid = (-(-size[1] // BLOCK[0]), -(-size[0] // BLOCK[1]), shape[0])
        self._device.launch_kernel(
            self._kernel, grid=grid, block=BLOCK, argument=bytes(arguments), stream=stream
        )

    def close(self) -> None:
        """Let go of it, when no run uses it any more: PyCUDA unloads it with the last reference."""
        self._kernel = None


def label_dtype(classes: int) -> np.dtype[Any]:
    """Give the dtype that the kernel writes labels in."""
    return np.dtype(np.uint8 if classes <= 256 else np.uint16)


def head_tables(
    samples: Sequence[int], size: tuple[int, int], *, align_corners: bool = False
) -> Array:
    """Give what the kernel reads of an upsampling, uint8: the mark of `TAINTED`, then the axes.

    Args:
        samples: (height, width) of the scores.
        size: (height, width) of the labels in px.

    Returns:
        uint8 [bytes], owned by the caller.
    """
    parts: list[Array] = [TAINTED]
    for count, outputs in zip(samples, size, strict=True):
        axis = make_axis(count, outputs, align_corners=align_corners)
        parts += [axis.cells.astype(np.int32), axis.near[:outputs], axis.far[:outputs]]
    return np.concatenate([part.view(np.uint8) for part in parts])


def check_tainted(mark: Array) -> None:
    """Look at the mark that the kernel left, int32 [1], at the beginning of its tables.

    Raises:
        NonFiniteOutputError: a score that was needed is NaN or infinite.
    """
    if mark[0]:
        raise NonFiniteOutputError(
            "the network's scores hold NaN or infinity.",
            hint="Run it in fp32; if they stay, the weights or the input are at fault.",
        )


def _table_offsets(size: tuple[int, int]) -> tuple[int, ...]:
    """Give where `head_tables` has the parts that `_TABLES` names, in bytes."""
    height, width = size
    rows = [TAINTED.nbytes + 4 * height * part for part in range(3)]
    columns = [TAINTED.nbytes + 4 * (3 * height + width * part) for part in range(3)]
    return (0, *rows, *columns)


def head_source() -> str:
    """Give the kernel's source, CUDA C++."""
    return files(__package__).joinpath("head.cu").read_text(encoding="utf-8")


def compile_head(architecture: str) -> bytes:
    """Compile the kernel with NVRTC, which needs no GPU.

    Args:
        architecture: such as ``"sm_86"``.

    Returns:
        Machine code (a cubin) for GPUs of that kind.

    Raises:
        BackendUnavailableError: NVRTC is not installed, or does not know this kind.
    """
    nvrtc = _require_nvrtc()
    source = head_source().encode()
    _, program = nvrtc.nvrtcCreateProgram(source, b"head.cu", 0, [], [])
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytearray(size)
            nvrtc.nvrtcGetProgramLog(program, log)
            said = " ".join(bytes(log).decode(errors="replace").strip("\0").split())
            _, major, minor = nvrtc.nvrtcVersion()
            raise BackendUnavailableError(
                f"NVRTC {major}.{minor} cannot compile the head for {architecture}: "
                f"{said[:300] or status.name}",
                hint="A GPU that is newer than NVRTC takes a newer one: pip install -U "
                "'nvidia-cuda-nvrtc>=13,<14'",
            )
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        code = bytearray(size)
        nvrtc.nvrtcGetCUBIN(program, code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)


def _require_nvrtc() -> ModuleType:
    """Import cuda.bindings' NVRTC and load its library.

    Raises:
        BackendUnavailableError: one of the two is not installed.
    """
    try:
        from cuda.bindings import nvrtc
        from cuda.pathfinder import DynamicLibNotFoundError
    except ImportError as error:
        raise BackendUnavailableError(
            f"NVRTC cannot be used: {error}.", hint=_INSTALL_NVRTC
        ) from error
    try:
        nvrtc.nvrtcVersion()  # the first call loads the library
    except DynamicLibNotFoundError as error:
        raise BackendUnavailableError(
            "NVRTC cannot be used: libnvrtc.so is neither in a wheel nor in Conda, CUDA_HOME or "
            "the system's folders.",
            hint=_INSTALL_NVRTC,
        ) from error
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise BackendUnavailableError(
            f"NVRTC cannot be used: {said}.", hint=_INSTALL_NVRTC
        ) from error
    module: ModuleType = nvrtc
    return module
